"""Live tests: real sandboxes, real clients, a world without internet.

One world serves all modules that a worker runs; making it takes a fifth of a second. A module has an
installation of its own. Its tests share one daemon, so they stay on one worker and clean up the rules they
add.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.live.clients import Clients, laboratory, origins
from tests.live.pythonclients import NotThere, python_clients
from tests.world import installed, why_no_sandbox, why_no_world

from ringfence.demo.installation import Installation
from ringfence.demo.world import World


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "live":
            item.add_marker(pytest.mark.live)
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the end of the daemon's log beside a failure."""
    report = yield
    arguments = getattr(item, "funcargs", {})
    lab = arguments.get("lab")
    if report.failed and isinstance(clients := arguments.get("clients"), Clients):
        clients.log.forget()  # what a failed test left unread is not the next one's
        lab = clients.lab
    if report.failed and isinstance(lab, Installation):
        report.sections.append(("daemon's log", lab.daemon_log(60)))
    return report


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    if reason := why_no_world():
        pytest.skip(reason)
    with World.open() as world:
        yield world


@pytest.fixture(scope="session")
def _sandboxes_work() -> None:
    if reason := why_no_sandbox(os.environ):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def lab(world: World, _sandboxes_work: None, request: pytest.FixtureRequest) -> Iterator[Installation]:
    """An installation under Balanced."""
    with installed(world, request.path.stem.removeprefix("test_")[:12]) as installation:
        yield installation


@pytest.fixture
def denied(lab: Installation) -> Callable[..., object]:
    """``with denied("pypi.org") as rule_id``: a deny rule for as long as the context lasts."""

    @contextmanager
    def deny(*resources: str) -> Iterator[str]:
        before = {rule["id"] for rule in lab.sbx_json("policy", "ls")["rules"]}
        lab.sbx("policy", "deny", "network", *resources)
        (made,) = {rule["id"] for rule in lab.sbx_json("policy", "ls")["rules"]} - before
        try:
            yield made
        finally:
            lab.sbx("policy", "rm", "network", "--id", made, must=False)

    return deny


@pytest.fixture(scope="session")
def _origins(world: World) -> Iterator[None]:
    with origins(world):
        yield


@pytest.fixture(scope="module")
def clients(
    world: World, _origins: None, _sandboxes_work: None, request: pytest.FixtureRequest
) -> Iterator[Clients]:
    """One sandbox for a module of real clients, its origins, its log: what nobody took from it is too much."""
    extra = getattr(request.module, "WORKSPACES", ())
    with laboratory(world, request.path.stem.removeprefix("test_clients_")[:12], extra) as clients:
        yield clients
        assert clients.log.take(0) == []


@pytest.fixture(scope="session")
def python_libraries() -> Path:
    """A directory with Python's HTTP libraries for a sandbox's own python3."""
    try:
        return python_clients()
    except NotThere as reason:
        pytest.skip(str(reason))
