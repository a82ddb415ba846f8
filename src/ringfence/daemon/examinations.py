"""What ``sbx doctor`` asks of the parts that only the daemon holds."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from ringfence.application.doctor import Check, Examination, Status
from ringfence.daemon.configuration import Configuration
from ringfence.daemon.gateway import StandingGateway
from ringfence.daemon.ledger import SegmentedLedger
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
        gateway: StandingGateway,
        ledger: SegmentedLedger,
        certificate: bytes,
    ) -> None:
        self._locations = locations
        self._configuration = configuration
        self._gateway = gateway
        self._ledger = ledger
        self._certificate = certificate

    def all(self) -> Sequence[Examination]:
        return (self._mode, self._worker, self._authority, self._disk, self._record, self._settings)

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

    async def _worker(self) -> Sequence[Check]:
        if not self._gateway.alive:
            return [
                Check(
                    name="gateway",
                    status=Status.FAIL,
                    message="is not there; nothing leaves any sandbox",
                    hint=f"the daemon's log says why: {self._locations.daemon_log}",
                )
            ]
        stats = await self._gateway.stats()
        limit = int(stats["descriptors"])
        bears = f"pid {self._gateway.pid}, bears about {limit // 2} connections at once"
        dropped = int(stats["dropped"])
        checks = [
            Check(
                name="gateway",
                status=Status.PASS if limit >= DESCRIPTORS else Status.WARN,
                message=f"runs without privileges, {bears}",
                hint="" if limit >= DESCRIPTORS else "raise the hard limit of open files (`ulimit -Hn`)",
            )
        ]
        if dropped:
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
        names = self._configuration.resolve
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
        if self._configuration.tls.extra_ca:
            checks.append(
                Check(
                    name="tls.extra_ca",
                    status=Status.WARN,
                    message="further certificate authorities are trusted",
                    detail=", ".join(self._configuration.tls.extra_ca),
                )
            )
        return checks
