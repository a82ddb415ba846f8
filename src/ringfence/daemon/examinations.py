"""What ``sbx doctor`` asks of the parts that only the daemon holds."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ringfence.application.doctor import Check, Examination, Status
from ringfence.daemon.configuration import Configuration
from ringfence.daemon.egress import Egress
from ringfence.daemon.gateway import StandingWorker
from ringfence.daemon.ledger import SegmentedLedger
from ringfence.daemon.workers import StandingGateway
from ringfence.gateway.core.chain import Chain
from ringfence.locations import Locations

LITTLE = 256 * 1024 * 1024
DESCRIPTORS = 65_536
"""A worker with fewer bears fewer connections than sixteen sandboxes may have."""
SOON = 30 * 86_400.0


class Examinations:
    """One method each; :meth:`all` lists them in the order of the report."""

    def __init__(
        self,
        *,
        locations: Locations,
        configuration: Configuration,
        egress: Callable[[], Egress],
        gateway: StandingGateway,
        ledger: SegmentedLedger,
        certificate: bytes,
    ) -> None:
        self._locations = locations
        self._configuration = configuration
        self._egress = egress
        self._gateway = gateway
        self._ledger = ledger
        self._certificate = certificate

    def all(self) -> Sequence[Examination]:
        return (self._mode, self._workers, self._authority, self._disk, self._record, self._settings)

    async def _mode(self) -> Sequence[Check]:
        who = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
        return [
            Check(
                name="enforcement",
                status=Status.PASS,
                message=f"advisory: the daemon runs as {who} and its state is the same person's",
                detail=str(self._locations.state),
            )
        ]

    async def _workers(self) -> Sequence[Check]:
        gateway = self._gateway
        if not gateway.alive:
            return [
                Check(
                    name="gateway",
                    status=Status.FAIL,
                    message="is not there; nothing leaves any sandbox"
                    if not any(worker.alive for worker in gateway.begun)
                    else "is not there for some sandboxes; nothing leaves them",
                    hint=f"the daemon's log says why: {self._locations.daemon_log}",
                )
            ]
        told = [(worker, await worker.stats()) for worker in gateway.begun]
        few = any(int(stats["descriptors"]) < DESCRIPTORS for _, stats in told)
        count, most = len(told), len(gateway.workers)
        workers = f"{count} of up to {most} workers" if most > 1 else "one worker"
        checks = [
            Check(
                name="gateway",
                status=Status.WARN if few else Status.PASS,
                message=f"{workers}, without privileges",
                detail="; ".join(_state(worker, stats) for worker, stats in told),
                hint="raise the hard limit of open files (`ulimit -Hn`)" if few else "",
            )
        ]
        checks += _tls(self._configuration.tls.backend, [stats["tls"] for _, stats in told])
        if dropped := sum(int(stats["dropped"]) for _, stats in told):
            checks.append(
                Check(name="audit", status=Status.WARN, message=f"{dropped} records were dropped under load")
            )
        return checks

    async def _authority(self) -> Sequence[Check]:
        from cryptography import x509

        certificate = x509.load_pem_x509_certificate(self._certificate)
        left = certificate.not_valid_after_utc.timestamp() - time.time()
        return [
            Check(
                name="authority",
                status=Status.PASS if left > SOON else Status.WARN,
                message=f"valid for {int(left // 86_400)} more days",
                detail=certificate.subject.rfc4514_string(),
                hint="" if left > SOON else f"move `{self._locations.authority}` away and restart the daemon",
            )
        ]

    async def _disk(self) -> Sequence[Check]:
        free = shutil.disk_usage(Path(self._locations.state)).free
        return [
            Check(
                name="disk",
                status=Status.PASS if free > LITTLE else Status.WARN,
                message=f"{free // (1024 * 1024)} MiB free for state",
                hint=""
                if free > LITTLE
                else "make room: without it nothing is recorded, and nothing let out",
            )
        ]

    async def _record(self) -> Sequence[Check]:
        failure = self._ledger.failure
        status = Status.FAIL if failure else Status.PASS
        return [Check(name="ledger", status=status, message=failure or "is written")]

    async def _settings(self) -> Sequence[Check]:
        """Settings that bend what is reached or trusted are shown, so that nobody has to remember them."""
        checks = []
        egress = self._egress()
        if egress.inactive:
            checks.append(
                Check(
                    name="settings",
                    status=Status.WARN,
                    message=f"inactive — corporate policy takes precedence: {', '.join(egress.inactive)}",
                )
            )
        if egress.chain is not None:
            checks.append(_about_proxies(egress, egress.chain))
        names = egress.resolve
        if names:
            listed = ", ".join(f"{name} = {target}" for name, target in sorted(names.items())[:10])
            checks.append(
                Check(
                    name="resolve",
                    status=Status.WARN,
                    message=f"{len(names)} names have static addresses",
                    detail=listed,
                    hint=f"they are in `{self._locations.config_file}`",
                )
            )
        if egress.extra_ca:
            checks.append(
                Check(
                    name="tls.extra_ca",
                    status=Status.WARN,
                    message="further certificate authorities are trusted",
                    detail=", ".join(self._configuration.tls.extra_ca),
                )
            )
        return checks


def _state(worker: StandingWorker, stats: Mapping[str, Any]) -> str:
    """One worker in words: who it is, whom it serves, what it bears."""
    served, connections = len(stats["sandboxes"]), int(stats["connections"])
    return (
        f"pid {worker.pid}: {served} {'sandbox' if served == 1 else 'sandboxes'}, "
        f"{connections} of about {stats['capacity']} connections, {stats['descriptors']} descriptors"
    )


def _about_proxies(egress: Egress, chain: Chain) -> Check:
    """Show the way out, without what proves who asks."""
    if chain.plain == chain.tunnels:
        proxies = str(chain.tunnels and chain.tunnels.masked)
    else:
        kinds = (("plain HTTP", chain.plain), ("all else", chain.tunnels))
        proxies = ", ".join(f"{kind} {proxy.masked if proxy else 'directly'}" for kind, proxy in kinds)
    remote = any(chain.resolves(proxy) for proxy in chain.proxies)
    details = (
        f"from {egress.origin}",
        f"not for {', '.join(chain.exemptions)}" if chain.exemptions else "",
        "asked for names, which it resolves itself"
        if remote
        else "asked for addresses, resolved and judged here",
    )
    unread = f"of NO_PROXY this means nothing here: {', '.join(egress.unread)}"
    return Check(
        name="proxy",
        status=Status.WARN if egress.unread else Status.PASS,
        message=f"sandboxes go out through {proxies}",
        detail="; ".join(filter(None, details)),
        hint=unread if egress.unread else "",
    )


def _tls(wish: str, told: Sequence[Mapping[str, str]]) -> list[Check]:
    """Which TLS backend is in force, and why. One that was asked for and cannot be had is a warning."""
    checks = []
    for tls in dict.fromkeys(tuple(each.items()) for each in told):
        kind = dict(tls)
        server, client = kind["server"], kind["client"]
        names = server if server == client else f"{server} towards sandboxes, {client} towards origins"
        denied = wish == "rtls" and client != "rtls"
        checks.append(
            Check(
                name="tls.backend",
                status=Status.WARN if denied else Status.PASS,
                message=f"{names}: {kind['reason']}",
                hint="`pip install 'ringfence[fast-tls]'`, or `tls.backend = \"auto\"`" if denied else "",
            )
        )
    return checks
