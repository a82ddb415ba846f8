"""One stage for a module; every test finds it empty."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.escapes.escape_stage")

from tests.escapes.escape_stage import Lab  # noqa: E402  # its assertions explain themselves


@pytest.fixture(scope="module")
def _theatre() -> Iterator[Lab]:
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
def lab(_theatre: Lab) -> Iterator[Lab]:
    """The gateway between two sockets, with nothing allowed yet."""
    _theatre.reset()
    yield _theatre
    _theatre.reset()
