"""What drivers have in common whose sandboxes are processes of this host: everything but how one is started.

The order of a start: workspaces are opened in the daemon's own mount namespace, as their owner; then a thread
takes new namespaces, stages the files, dresses the network and runs the runtime's program; that thread ends,
and what it was made of belongs to the program alone. The record of the processes is written last: before it,
whatever was started is found in the sandbox's control group and ended by the next start, stop or removal.
"""

from __future__ import annotations

import asyncio
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ringfence.application.errors import Conflict, NotFound, RingfenceError, Unavailable
from ringfence.application.ports import Attachment, Probe
from ringfence.runtimes import kernel, netns, rootfs, trial, workspace
from ringfence.runtimes.cgroup import Cgroups
from ringfence.runtimes.identity import Identity, identity_of
from ringfence.runtimes.processes import Running
from ringfence.runtimes.records import Sandboxes
from ringfence.runtimes.templates import Layer, Templates
from ringfence.sandbox.model import Condition, Isolation, Observation, SandboxSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a driver's own part gets, in a thread that is where the sandbox will be: files staged, network joined."""

    spec: SandboxSpec
    identity: Identity
    staged: rootfs.Staged
    users: int
    """The sandbox's user namespace, to be entered by the program: the thread itself is still the host's root."""
    link: int
    log: int
    log_path: Path
    cgroups: Cgroups | None
    """``None`` where limits cannot be enforced."""

    def failed(self, reason: str) -> Unavailable:
        return Unavailable(
            f"cannot start sandbox `{self.spec.name}`: {reason}", hint=f"its log is {self.log_path}"
        )

    def confine(self, *pids: int) -> None:
        """Put processes under the sandbox's limits, and be sure that they are."""
        if self.cgroups is not None:
            for pid in pids:
                self.cgroups.place(self.spec.id, pid)
            if not all(self.cgroups.holds(self.spec.id, pid) for pid in pids):
                raise self.failed("its processes are not under its limits")


class LocalDriver(ABC):
    """Sandboxes under ``<state>/sandboxes/<id>/<driver>/``."""

    name: str
    isolation: Isolation

    def __init__(
        self,
        *,
        state: str | os.PathLike[str],
        templates: Templates,
        agent: str | os.PathLike[str],
        reserved: Sequence[str] = (),
        cgroups: Cgroups | None = None,
    ) -> None:
        """``reserved``: the product's own directories, which can be no workspace."""
        self._sandboxes = Sandboxes(Path(state) / "sandboxes", self.name)
        self._outcome = Path(state) / "probes" / self.name
        self._templates = templates
        self._agent = Path(agent)
        self._reserved = tuple(reserved)
        self._cgroups = cgroups or Cgroups()

    @abstractmethod
    def _program(self) -> Path:
        """The runtime's program; raises ``Unavailable`` with the command that installs it."""

    @abstractmethod
    def _version(self, program: Path) -> str: ...

    @abstractmethod
    def _launch(self, launch: Launch, program: int) -> Running:
        """Run the program, given as a descriptor; return when the sandbox's first process runs."""

    async def probe(self) -> Probe:
        """Run a sandbox of nothing but the agent, once per boot and build, and remember."""
        try:
            program = self._program()
            version = await asyncio.to_thread(self._version, program)
        except RingfenceError as error:
            return Probe(usable=False, isolation=self.isolation, reason=str(error), hint=error.hint)
        reason = await trial.remembered(
            self._outcome,
            trial.mark(program, self._agent),
            lambda: trial.run(self._outcome.parent, self._begin, self._agent, self._cgroups.clear),
        )
        limited = not self._cgroups.reason
        return Probe(
            usable=not reason,
            isolation=self.isolation,
            version=version,
            reason=reason or f"ran a sandbox{'' if limited else f', without limits: {self._cgroups.reason}'}",
            capabilities=frozenset({"tty", "persistent-root"} | ({"limits"} if limited else set())),
        )

    async def prepare(self, template: str) -> None:
        await self._templates.prepare(template)

    async def create(self, spec: SandboxSpec) -> None:
        self._program()
        trial.require_agent(self._agent)
        await self._templates.prepare(spec.template)
        await kernel.apart(lambda: workspace.admit(spec, self._reserved), name="workspace")
        await asyncio.to_thread(
            rootfs.create,
            self._sandboxes.directory(spec.id),
            self._templates.layers(spec.template),
            identity_of(spec.id),
            spec.limits.disk,
        )

    async def start(
        self, spec: SandboxSpec, attachment: Attachment, files: Mapping[str, bytes]
    ) -> socket.socket:
        observed = await self.observe(spec)
        if observed.condition is Condition.ABSENT:
            raise NotFound(f"sandbox `{spec.name}` was not created")
        if observed.condition is Condition.RUNNING:
            raise Conflict(f"sandbox `{spec.name}` runs already")
        await self._cgroups.clear(spec.id)
        await self._templates.prepare(spec.template)
        layers = self._templates.layers(spec.template)
        directory = self._sandboxes.directory(spec.id)
        try:
            link, running = await self._begin(spec, attachment, files, layers, directory)
        except OSError as error:
            raise Unavailable(f"cannot start sandbox `{spec.name}`: {error}") from error
        self._sandboxes.record(spec.id, running)
        return link

    async def _begin(
        self,
        spec: SandboxSpec,
        attachment: Attachment,
        files: Mapping[str, bytes],
        layers: Sequence[Layer],
        directory: Path,
    ) -> tuple[socket.socket, Running]:
        """Start a sandbox whose directory is there; the link and what runs. On failure nothing runs."""
        identity = identity_of(spec.id)
        limited = self._cgroups.make(spec.id, spec.limits)
        with ExitStack() as opened:

            def hold(descriptor: int) -> int:
                opened.callback(os.close, descriptor)
                return descriptor

            trees = await kernel.apart(lambda: workspace.open_trees(spec, identity), name="workspace")
            for tree in trees:
                hold(tree.descriptor)
            program = hold(os.open(self._program(), os.O_PATH | os.O_CLOEXEC))
            network = hold(os.open(attachment.netns, os.O_RDONLY | os.O_CLOEXEC))
            users = hold(kernel.owning_user_namespace(network))
            log_path = directory / "runtime.log"
            log = hold(
                os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            )
            ours, theirs = socket.socketpair()
            opened.callback(theirs.close)
            ours.setblocking(False)

            def body() -> Running:
                staged = rootfs.stage(directory, layers, identity, users, trees, files, self._agent)
                netns.dress(attachment.netns, attachment.addresses)
                launch = Launch(
                    spec=spec,
                    identity=identity,
                    staged=staged,
                    users=users,
                    link=theirs.fileno(),
                    log=log,
                    log_path=log_path,
                    cgroups=self._cgroups if limited else None,
                )
                running = self._launch(launch, program)
                return Running(running.main, running.others, "" if limited else self._cgroups.reason)

            try:
                return ours, await kernel.apart(body, name=self.name)
            except BaseException:
                ours.close()
                await self._cgroups.clear(spec.id)
                raise

    async def stop(self, spec: SandboxSpec, *, grace: float) -> None:
        await self._end(spec.id, grace)

    async def _end(self, sandbox: str, grace: float) -> None:
        running = self._sandboxes.running(sandbox)
        if running is not None:
            await running.end(grace)
        await self._cgroups.clear(sandbox)

    async def remove(self, spec: SandboxSpec) -> None:
        await self.sweep(spec.id)

    async def observe(self, spec: SandboxSpec) -> Observation:
        return self._sandboxes.observe(spec.id)

    async def orphans(self, known: frozenset[str]) -> Sequence[str]:
        return self._sandboxes.orphans(known)

    async def sweep(self, sandbox: str) -> None:
        await self._end(sandbox, 0.0)
        await asyncio.to_thread(self._sandboxes.remove, sandbox)
