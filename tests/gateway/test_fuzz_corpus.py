"""The fuzzers' corpora, as they are and mutated: what was found once stays found."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from runpy import run_path

import pytest

FUZZ = Path(__file__).parents[2] / "fuzz"
TARGETS = sorted(path.stem for path in FUZZ.glob("[!_]*.py"))


def entries(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((FUZZ / "corpus" / target).iterdir())]


def reader(target: str) -> Callable[[bytes], None]:
    return run_path(str(FUZZ / f"{target}.py"))["one"]  # type: ignore[no-any-return]


def test_every_corpus_has_its_fuzzer() -> None:
    assert sorted(path.name for path in (FUZZ / "corpus").iterdir()) == TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_holds(target: str) -> None:
    one = reader(target)
    assert entries(target)
    for entry in entries(target):
        one(entry)


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_holds_when_it_is_mutated(target: str) -> None:
    one, seeds, chosen = reader(target), entries(target), random.Random(f"ringfence {target}")
    for _ in range(5_000):
        data = bytearray(chosen.choice(seeds))
        for _ in range(chosen.randint(1, 5)):
            at = chosen.randrange(len(data) + 1)
            match chosen.randrange(4):
                case 0:
                    data[at : at + 1] = chosen.randbytes(1)
                case 1:
                    data[at:at] = chosen.randbytes(chosen.randint(1, 4))
                case 2:
                    del data[at : at + chosen.randint(1, 4)]
                case _:
                    other = chosen.choice(seeds)
                    data[at:] = other[chosen.randrange(len(other) + 1) :]
        one(bytes(data))
