"""Which runtime a sandbox gets: the strongest that is proven, or the one that was named, or none."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ringfence.application.doctor import Doctor, Status
from ringfence.application.errors import InvalidInput, Unavailable
from ringfence.application.platforms import Platforms
from ringfence.application.ports import Platform, Probe
from ringfence.sandbox.model import Isolation


class Driver:
    def __init__(self, name: str, isolation: Isolation, *, works: bool) -> None:
        self.name = name
        self.isolation = isolation
        self.works = works
        self.probes = 0

    async def probe(self) -> Probe:
        self.probes += 1
        return Probe(
            usable=self.works,
            isolation=self.isolation,
            reason="" if self.works else f"{self.name} is missing",
            hint=f"install {self.name}",
        )


class Enclosure:
    async def probe(self) -> Probe:
        raise OSError("no namespaces")


def platforms(default: str = "auto", **works: bool) -> Platforms:
    isolations = {
        "namespaces": Isolation.SHARED_KERNEL,
        "fake": Isolation.NONE,
        "emulated": Isolation.EMULATED_VM,
        "gvisor": Isolation.USER_KERNEL,
        "microvm": Isolation.HW_VM,
    }
    made: dict[str, Platform] = {}
    for name, isolation in isolations.items():
        if name in works:
            nothing: Any = SimpleNamespace()
            made[name] = Platform(
                driver=Driver(name, isolation, works=works[name]),  # type: ignore[arg-type]
                enclosure=Enclosure(),  # type: ignore[arg-type]
                gateway=nothing,
            )
    return Platforms(made, default=default)


@pytest.mark.parametrize(
    ("works", "asked", "chosen"),
    [
        ({"microvm": True, "gvisor": True, "namespaces": True}, "auto", "microvm"),
        ({"microvm": False, "gvisor": True, "namespaces": True}, "auto", "gvisor"),
        ({"gvisor": True, "namespaces": True}, "namespaces", "namespaces"),
        ({"gvisor": True, "fake": True}, "fake", "fake"),
    ],
)
def test_what_is_chosen(works: dict[str, bool], asked: str, chosen: str) -> None:
    assert asyncio.run(platforms(**works).choose(asked)) == chosen


@pytest.mark.parametrize(
    ("works", "asked", "error", "text"),
    [
        (
            {"gvisor": False, "namespaces": True, "fake": True, "emulated": True},
            "auto",
            Unavailable,
            "gvisor is missing",
        ),
        ({"gvisor": False, "microvm": True}, "gvisor", Unavailable, "does not work here"),
        ({"namespaces": False, "gvisor": True}, "namespaces", Unavailable, "does not work here"),
        ({"gvisor": True}, "docker", InvalidInput, "unknown runtime"),
        ({"namespaces": True}, "auto", Unavailable, "none is there"),
    ],
)
def test_nothing_weaker_or_other_than_asked_is_ever_taken(
    works: dict[str, bool], asked: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as refused:
        asyncio.run(platforms(**works).choose(asked))
    assert refused.value.hint  # type: ignore[attr-defined]


def test_what_is_configured_counts_where_nothing_is_named() -> None:
    assert asyncio.run(platforms("namespaces", gvisor=True, namespaces=True).choose("auto")) == "namespaces"
    with pytest.raises(Unavailable):
        asyncio.run(platforms("namespaces", gvisor=True, namespaces=False).choose("auto"))


def test_a_proof_is_remembered_and_a_failure_is_tried_again() -> None:
    async def story() -> None:
        found = platforms(gvisor=False)
        driver: Any = found["gvisor"].driver
        for _ in range(2):
            with pytest.raises(Unavailable):
                await found.choose("auto")
        assert driver.probes == 2
        driver.works = True
        for _ in range(3):
            assert await found.choose("auto") == "gvisor"
        assert driver.probes == 3

    asyncio.run(story())


def test_a_doctor_reports_what_it_meets_even_when_looking_fails() -> None:
    class Broken:
        async def check(self) -> str:
            raise Unavailable("the database is gone", hint="restore it")

    found = platforms(gvisor=True, namespaces=False, fake=True)
    policy: Any = SimpleNamespace(chosen=False)
    store: Any = Broken()
    doctor = Doctor(store=store, platforms=found, policy=policy, lives=())  # type: ignore[arg-type]
    checks = {check.name: check for check in asyncio.run(doctor.examine())}
    assert checks["runtime gvisor"].status is Status.PASS
    assert "chosen by `auto`" in checks["runtime gvisor"].message
    assert checks["runtime namespaces"].status is Status.SKIP
    assert (checks["data"].status, checks["data"].hint) == (Status.FAIL, "restore it")
    assert "runtime fake" not in checks
    assert checks["enclosures"].status is Status.FAIL
    assert checks["policy"].status is Status.WARN
