"""``python -m fuzz._run NAME [libFuzzer options]``: one reader under atheris, which never comes back."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

import atheris


def main() -> None:
    name = sys.argv[1]
    with atheris.instrument_imports(include=["ringfence"]):
        target = importlib.import_module(f"fuzz.{name}")
    corpus = Path(__file__).parent / "corpus" / name
    grown = Path(tempfile.gettempdir()) / "ringfence-fuzz" / name
    grown.mkdir(parents=True, exist_ok=True)
    options = [f"-artifact_prefix={corpus}/", str(grown), str(corpus), *sys.argv[2:]]
    atheris.Setup([sys.argv[0], *options], target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
