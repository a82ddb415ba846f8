"""Every scene of the data path, over ``rtls`` on both sides: what a sandbox and an origin see is the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gateway_stage
import pytest
import test_relay

pytest.importorskip("rtls", reason="rtls is not installed (pip install 'ringfence[fast-tls]')")

SCENES = {
    name: found
    for name, found in vars(test_relay).items()
    if name.startswith("test_") and not inspect.signature(found).parameters
}


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_over_rtls(scene: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_stage, "TLS", "rtls")
    scene()
