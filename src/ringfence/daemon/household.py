"""The composition root: the one place where every concrete thing is named and put together."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import string
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringfence import __version__, documents
from ringfence.api.services import Residence, Services
from ringfence.application.decisions import Decisions
from ringfence.application.doctor import Doctor
from ringfence.application.exchange import Exchange
from ringfence.application.heartbeat import Heartbeat
from ringfence.application.in_force import PolicyInForce
from ringfence.application.journal import Journal
from ringfence.application.lives import Lives
from ringfence.application.mistrust import Mistrust
from ringfence.application.platforms import Platforms
from ringfence.application.ports import Platform
from ringfence.application.presets import Presets
from ringfence.application.proofs import Proofs
from ringfence.application.rules import Rules
from ringfence.application.runner import Runner
from ringfence.application.sandboxes import Sandboxes
from ringfence.application.secrets import Secrets
from ringfence.daemon.configuration import Configuration
from ringfence.daemon.egress import Egress, in_force, written
from ringfence.daemon.examinations import Examinations
from ringfence.daemon.gateway import GatewaySettings
from ringfence.daemon.ledger import SegmentedLedger
from ringfence.daemon.minting import HostMint
from ringfence.daemon.places import HostWorkspaces
from ringfence.daemon.rehearsal import RehearsalEnclosure, RehearsalGateway
from ringfence.daemon.spending import Spending
from ringfence.daemon.supervisors import SupervisorProcesses
from ringfence.daemon.surroundings import Surroundings
from ringfence.daemon.system_key import SystemKey
from ringfence.daemon.trust import TrustStore, extra_roots, load_authority
from ringfence.daemon.undo import UndoDocuments
from ringfence.daemon.workers import StandingGateway, usual_count
from ringfence.gateway.authority import create_authority
from ringfence.locations import Locations
from ringfence.runtimes.enclosure import Enclosures
from ringfence.runtimes.fake import FakeDriver
from ringfence.runtimes.gvisor import GVisorDriver
from ringfence.runtimes.namespaces import NamespacesDriver
from ringfence.runtimes.templates import Templates
from ringfence.store.database import Database
from ringfence.store.key_holders import KeyFile, Keyring
from ringfence.store.secrets import KeyHolder, SealedVault

_log = logging.getLogger(__name__)
_AGENT = Path(__file__).parents[1] / "runtimes" / "agent" / "sbx-agent"


@dataclass(slots=True, kw_only=True)
class Household:
    """A daemon's parts, in the order in which they begin and, reversed, end."""

    store: Database
    journal: Journal
    ledger: SegmentedLedger
    mistrust: Mistrust
    spending: Spending
    policy: PolicyInForce
    gateway: StandingGateway
    surroundings: Surroundings
    runner: Runner
    sandboxes: Sandboxes
    secrets: Secrets
    services: Services

    async def begin(self) -> None:
        """Take up what an earlier daemon left. Afterwards requests can be answered."""
        await self.policy.load()
        await self.journal.load()
        for record in self.journal.recent():
            self.mistrust.heed(record)
        await self.spending.load(self.ledger)
        await self.secrets.load()
        await self.gateway.start()
        await self.sandboxes.recover()
        await self.gateway.forget_others({life.id for life in self.sandboxes.list() if life.running})
        await self.secrets.prune()
        self.surroundings.start()

    async def end(self) -> None:
        """Let go of everything; what runs goes on, under the policy in force."""
        idle = not any(life.running for life in self.sandboxes.list())
        await self.surroundings.stop()
        self.policy.close()
        self.secrets.close()
        await self.runner.abandon()
        await self.gateway.leave(end=idle)
        await asyncio.to_thread(self.ledger.close)
        await self.store.close()


async def furnish(
    locations: Locations, configuration: Configuration, residence: Residence, *, home: str
) -> Household:
    """Build the parts. Raises what is wrong with the installation; nothing has been started then."""
    state, runtime, data = Path(locations.state), Path(locations.runtime), Path(locations.data)
    reserved = tuple(
        str(path) for path in (locations.state, locations.runtime, locations.config, locations.data)
    )
    own = written(configuration, extra_roots(configuration.tls.extra_ca), os.environ)
    key, certificate = load_authority(Path(locations.authority), lambda: create_authority(now=time.time()))
    store = Database(Path(locations.database))
    await store.open()
    ledger = SegmentedLedger(Path(locations.ledger))

    journal = Journal(ledger, clock=time.time)
    mistrust = Mistrust()
    spending = Spending(clock=time.time)
    proofs = Proofs(nonce=lambda: secrets.token_hex(8))
    lives = Lives()
    surroundings = Surroundings()
    presets = documents.ShippedPresets()
    policy = PolicyInForce(
        store,
        presets,
        journal,
        clock=time.time,
        guards=surroundings.guards,
        is_public_suffix=surroundings.is_public_suffix,
        protected=reserved,
        home=home,
    )
    surroundings.changed = policy.refresh
    kept = Secrets(
        _vault(locations, configuration),
        HostMint(),
        policy,
        lives,
        journal,
        clock=time.time,
        token=_token,
        is_public_suffix=surroundings.is_public_suffix,
    )

    async def record(batch: Sequence[Mapping[str, Any]]) -> None:
        for each in batch:
            if each.get("canary"):
                proofs.observe(each)
            mistrust.heed(each)
        for each in await journal.decided(batch):
            spending.heed(each)

    def outwards() -> Egress:
        return in_force(own, policy.effective().governs)

    async def lost(reason: str, served: Collection[str]) -> None:
        await sandboxes.lose_gateway(reason, served)

    async def introduce(served: Collection[str]) -> None:
        await sandboxes.readmit(served)

    gateway = StandingGateway(
        runtime,
        GatewaySettings(
            key=key,
            certificate=certificate,
            egress=outwards,
            spent=spending.of,
            limits=configuration.gateway,
            tls=configuration.tls.backend,
        ),
        count=configuration.workers.count or usual_count(),
        log=Path(locations.daemon_log),
        record=record,
        lost=lost,
        introduce=introduce,
    )
    enclosures = Enclosures(runtime)
    templates = Templates(Path(locations.templates))
    gvisor = GVisorDriver(
        state=state, templates=templates, agent=_AGENT, runsc=(data / "bin" / "runsc",), reserved=reserved
    )
    namespaces = NamespacesDriver(state=state, templates=templates, agent=_AGENT, reserved=reserved)
    rehearsal = RehearsalGateway(record, clock=time.time)
    imagined = RehearsalEnclosure(rehearsal)
    platforms = Platforms(
        {
            "gvisor": Platform(driver=gvisor, enclosure=enclosures, gateway=gateway),
            "namespaces": Platform(driver=namespaces, enclosure=enclosures, gateway=gateway),
            "fake": Platform(driver=FakeDriver(), enclosure=imagined, gateway=rehearsal),
        },
        default=configuration.runtime,
    )
    supervisors = SupervisorProcesses(runtime, log=Path(locations.daemon_log))
    heartbeat = Heartbeat(proofs, journal)
    runner = Runner(
        platforms=platforms,
        store=store,
        policy=policy,
        heartbeat=heartbeat,
        supervisors=supervisors,
        trust=TrustStore(certificate, lambda: outwards().extra_ca),
        secrets=kept,
        journal=journal,
        lives=lives,
    )
    sandboxes = Sandboxes(
        store=store,
        lives=lives,
        runner=runner,
        platforms=platforms,
        policy=policy,
        supervisors=supervisors,
        workspaces=HostWorkspaces(reserved),
        secrets=kept,
        journal=journal,
        clock=time.time,
        identifier=_identifier,
        grace=configuration.lifecycle.grace,
    )
    exchange = Exchange(
        policy,
        lives,
        documents,
        clock=time.time,
        identifier=_identifier,
        is_public_suffix=surroundings.is_public_suffix,
    )
    examinations = Examinations(
        locations=locations,
        configuration=configuration,
        egress=outwards,
        gateway=gateway,
        ledger=ledger,
        certificate=certificate,
    )
    services = Services(
        version=__version__,
        sandboxes=sandboxes,
        platforms=platforms,
        rules=Rules(
            policy,
            lives,
            clock=time.time,
            identifier=_identifier,
            is_public_suffix=surroundings.is_public_suffix,
        ),
        presets=Presets(
            policy,
            presets,
            require_init=configuration.policy.require_init,
            keep_undo=UndoDocuments(state / "undo", exchange, policy, lives, clock=time.time).keep,
        ),
        decisions=Decisions(policy, lives, journal, clock=time.time),
        exchange=exchange,
        doctor=Doctor(
            store=store,
            platforms=platforms,
            policy=policy,
            lives=lives,
            further=(*examinations.all(), kept.examine, mistrust.examine),
        ),
        secrets=kept,
        residence=residence,
    )
    return Household(
        store=store,
        journal=journal,
        ledger=ledger,
        mistrust=mistrust,
        spending=spending,
        policy=policy,
        gateway=gateway,
        surroundings=surroundings,
        runner=runner,
        sandboxes=sandboxes,
        secrets=kept,
        services=services,
    )


def _vault(locations: Locations, configuration: Configuration) -> SealedVault:
    directory = Path(locations.secrets)
    holders: dict[str, KeyHolder] = {
        "keyring": Keyring(str(directory)),
        "systemd-creds": SystemKey(directory / "key.sealed"),
        "key-file": KeyFile(directory / "key"),
    }
    return SealedVault(directory, configuration.secrets.backend, holders)


def _token() -> str:
    """Return 16 characters that nobody guesses, for a placeholder."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(16))


def _identifier() -> str:
    return str(uuid.uuid4())
