"""Attaching to what runs in a sandbox: ``run`` for its agent, ``exec`` for any command.

Standard output is the command's alone; what sbx says goes to standard error. The command's exit code is
passed through, so a failure of ours is 125, which no shell command uses; only a refusal to *create* the
sandbox keeps the code that ``create`` leaves with (2 for bad input, 4 for a mount that policy denies), for
nothing was run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ringfence.cli import reach
from ringfence.cli.commands import Command
from ringfence.cli.options import agents, creation_options, environment, sandbox_argument, workspaces
from ringfence.cli.sandboxes import specified
from ringfence.cli.terminal.screen import err, plain, progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ringfence.client.api import Daemon
    from ringfence.client.shapes import Sandbox, Session, Started

SANDBOX_FAILED = 125
_REST = "ringfence.arguments"


class RunCommand(Command):
    """What follows the first ``--`` belongs to the agent, whatever it looks like."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            cut = args.index("--")
            ctx.meta[_REST] = args[cut + 1 :]
            args = args[:cut]
        return super().parse_args(ctx, args)


class ExecCommand(Command):
    """Options stand before the sandbox or between it and the command; the command's own are left alone."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_interspersed_args = False
        valued = {
            name
            for option in self.params
            if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        }
        first = _options_end(args, valued)
        options, rest = args[:first], _undashed(args[first:])
        if len(rest) > 1:
            name, rest = rest[0], rest[1:]
            second = _options_end(rest, valued)
            args = [*options, *rest[:second], "--", name, *_undashed(rest[second:])]
        return super().parse_args(ctx, args)


def _options_end(words: Sequence[str], valued: set[str]) -> int:
    """Where the options that ``words`` begin with end; those in ``valued`` take a value."""
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-", "--"):
        word = words[at]
        if word.startswith("--"):
            open_ended = word in valued
        else:
            taking = next((index for index, char in enumerate(word) if index and f"-{char}" in valued), 0)
            open_ended = taking == len(word) - 1
        at += 2 if open_ended else 1
    return min(at, len(words))


def _undashed(words: list[str]) -> list[str]:
    return words[1:] if words[:1] == ["--"] else words


@click.command(
    "run",
    cls=RunCommand,
    examples=(
        "sbx run shell .                       # a new sandbox; gone when its shell ends",
        "sbx run lab                           # attach to a sandbox that exists, started if stopped",
        "sbx run --name lab claude . -- --resume",
        "sbx run shell . -- make test          # one command instead of a shell",
    ),
)
@creation_options
@click.option("--rm", "remove", is_flag=True, help="Remove the sandbox when its last session ends.")
@click.option("--keep", is_flag=True, help="Keep a sandbox that was made without a name.")
@sandbox_argument("target", metavar="SANDBOX | AGENT", required=False)
@click.argument("paths", metavar="[PATH[:ro]]... [-- ARGS...]", nargs=-1)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    target: str | None,
    paths: tuple[str, ...],
    remove: bool,
    keep: bool,
    **options: Any,
) -> int:
    """Attach to SANDBOX, or make a sandbox for AGENT that sees PATH (default: this directory) and attach to
    it.

    Without a name the new sandbox is anonymous: leaving its last session cleanly removes it, and only the
    workspace stays. A named one is stopped after its last session and keeps its state. What follows -- goes
    to the agent; for the shell agent it is a command.
    """
    if remove and keep:
        raise click.UsageError("--rm and --keep contradict each other", ctx)
    arguments: list[str] = ctx.meta.get(_REST, [])
    creating = target in agents()
    if not creating:
        target = _existing(ctx, target, paths, options)
    with ours():
        daemon = reach.daemon()
    if creating:
        assert target is not None
        directories = workspaces(paths or (".",))
        anonymous = remove or (not options["name"] and not keep)
        sandbox = _make(daemon, specified(target, directories, options, anonymous=anonymous))
        variables: Mapping[str, str] = {}
    else:
        assert target is not None
        with ours():
            sandbox = daemon.sandbox(target)
        variables = environment(options["env"], options["env_file"], os.environ)
    with ours():
        started = _started(daemon, sandbox["name"])
        progress(f"Starting {plain(sandbox['agent'])} agent in sandbox '{plain(sandbox['name'])}'...")
        if sandbox["workspaces"]:
            progress(f"Workspace: {plain(sandbox['workspaces'][0])}")
        session = started["session"]
        code = _attach(
            session, _entry(sandbox["agent"], session["command"], arguments), variables, terminal=_terminal()
        )
        _leave(daemon, sandbox, remove=remove and not creating)
    return code


def _existing(
    ctx: click.Context, target: str | None, paths: Sequence[str], options: Mapping[str, Any]
) -> str:
    """The name of the sandbox to attach to. What only a new sandbox can be given is refused, not ignored."""
    name = target or options["name"]
    if not name:
        raise click.UsageError("name a sandbox to attach to, or an agent to make one for", ctx)
    if target and options["name"] and target != options["name"]:
        raise click.UsageError(f"`{target}` is not an agent, and --name names another sandbox", ctx)
    given = ["a PATH"] if paths else []
    given += [
        "--" + key.replace("_", "-")
        for key in ("runtime", "template", "cpus", "memory", "deny_network", "no_protect_git")
        if options[key]
    ]
    if given:
        error = click.UsageError(f"{given[0]} can only be used when creating a new sandbox", ctx)
        error.hint = f"`{name}` is no agent; agents are {', '.join(agents())}"  # type: ignore[attr-defined]
        raise error
    return str(name)


def _make(daemon: Daemon, specification: dict[str, object]) -> Sandbox:
    from ringfence.cli.policy.presets import with_policy

    directories = specification["workspaces"]
    others = [
        found["name"]
        for found in daemon.sandboxes()
        if specification["anonymous"] and found["anonymous"] and found["workspaces"] == directories
    ]
    progress("Creating new sandbox...")
    made = with_policy(daemon, lambda: daemon.create(specification))
    if others:
        first, second = plain(others[0]), plain(made["name"])
        err(f'Note: sandbox "{first}" already exists for this workspace. Creating "{second}" instead.')
    return made


def _entry(agent: str, command: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The agent's command with its arguments. To a shell, words that are no options are the command."""
    if agent == "shell" and arguments and not arguments[0].startswith("-"):
        return list(arguments)
    return [*command, *arguments]


def _leave(daemon: Daemon, sandbox: Sandbox, *, remove: bool) -> None:
    """After the session: what was promised to be gone is gone when the command line returns."""
    from ringfence.client.errors import NotFound

    name = sandbox["name"]
    if remove:
        try:
            if not daemon.sandbox(name).get("sessions"):
                daemon.remove(name)
        except NotFound:
            return
    elif sandbox["anonymous"]:
        daemon.settle(name)


@click.command(
    "exec",
    cls=ExecCommand,
    examples=(
        "sbx exec -it lab bash",
        "sbx exec lab python3 -m pip install httpx",
        "tar c . | sbx exec -i lab tar x -C /tmp",
        "sbx exec -d lab python3 -m http.server",
    ),
)
@click.option("-d", "--detach", "--detached", "detach", is_flag=True, help="Start the command and return.")
@click.option("-e", "--env", "env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable.")
@click.option("--env-file", "env_file", multiple=True, metavar="FILE", help="Read variables from a file.")
@click.option("-i", "--interactive", "stdin", is_flag=True, help="Pass standard input on.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option(
    "-u", "--user", default="", metavar="USER", help="User inside: name or uid, and :group or :gid."
)
@click.option("-w", "--workdir", default="", metavar="DIR", help="Working directory inside.")
@click.option("--privileged", is_flag=True, hidden=True)
@sandbox_argument()
@click.argument("words", metavar="COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def execute(
    ctx: click.Context,
    sandbox: str,
    words: tuple[str, ...],
    detach: bool,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    stdin: bool,
    tty: bool,
    user: str,
    workdir: str,
    privileged: bool,
) -> int:
    """Run COMMAND in SANDBOX, started if it is stopped, and leave with its exit code.

    A failure of sbx itself leaves with 125; 126: COMMAND cannot be executed, 127: there is no such command.
    """
    if privileged:
        raise click.UsageError("--privileged does not exist here: no command may leave the enclosure", ctx)
    if tty and detach:
        raise click.UsageError("-t and -d contradict each other: a detached command has no terminal", ctx)
    if tty and not _terminal():
        raise click.UsageError("-t needs a terminal, and standard input or output is none; leave it out", ctx)
    variables = environment(env, env_file, os.environ)
    with ours():
        daemon = reach.daemon()
        session: Session = _started(daemon, sandbox)["session"]
        session = {**session, "cwd": workdir or session["cwd"], "user": user or session["user"]}
        if detach:
            from ringfence.client.detached import attach_detached

            attach_detached(
                session["socket"],
                argv=words,
                environment={**session["environment"], **variables},
                cwd=session["cwd"],
                user=session["user"],
            )
            return 0
        return _attach(session, words, variables, terminal=tty, stdin=stdin)


def _started(daemon: Daemon, name: str) -> Started:
    from ringfence.cli.policy.presets import with_policy

    return with_policy(daemon, lambda: daemon.start(name))


def _attach(
    session: Session, argv: Sequence[str], variables: Mapping[str, str], *, terminal: bool, stdin: bool = True
) -> int:
    from ringfence.client.session import attach

    inherited = {key: os.environ[key] for key in ("TERM", "COLORTERM") if terminal and key in os.environ}
    return attach(
        session["socket"],
        argv=list(argv),
        environment={**session["environment"], **inherited, **variables},
        cwd=session["cwd"],
        user=session["user"],
        tty=terminal,
        stdin=stdin,
    )


def _terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


@contextmanager
def ours() -> Iterator[None]:
    """Mark failures of ours as such: 125, so that nobody takes them for the command's."""
    from ringfence.client.errors import RingfenceError

    try:
        yield
    except RingfenceError as error:
        error.exit_code = SANDBOX_FAILED
        raise
