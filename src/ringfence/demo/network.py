"""``sbx demo network``: three requests leave a real sandbox, and policy decides.

The story is told in the order of the network enforcement demo, with its commands unchanged: rules, a sandbox,
three curls, a close look at a refusal, the host for contrast, the audit trail, the missing baseline, exit.
Everything acts through ``sbx`` as a person would, inside a small world of its own
(:mod:`ringfence.demo.world`): it needs no internet, and it touches neither the machine's network nor the
person's own installation. It leaves with 0 only if everything is as it must be.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from ringfence.application.errors import RingfenceError
from ringfence.demo.bypass import try_to_get_out
from ringfence.demo.checks import (
    check_close_up,
    check_departure,
    check_host,
    check_log,
    check_no_baseline,
    check_requests,
    check_rules,
    check_silence,
    equal,
)
from ringfence.demo.installation import CommandError, Installation, own_environment
from ringfence.demo.narration import Narrator
from ringfence.demo.script import (
    BLOCKED_BODY,
    HOST_VERBOSE,
    PROTOCOLS,
    REQUESTS,
    RULES,
    VERBOSE,
    VERBOSE_END,
    VERBOSE_HTTP11,
)
from ringfence.demo.terminal import SilenceError, Terminal
from ringfence.demo.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line may ask of the demo."""

    bypass_attempts: bool = False
    json: bool = False
    runtime: str = ""
    """A runtime by name; empty is the strongest that works here."""


class Demo:
    """One telling of the story."""

    def __init__(self, installation: Installation, narrator: Narrator, options: Options) -> None:
        self.sbx = installation
        self.world = installation.world
        self.tell = narrator
        self.options = options
        self.sandbox = ""

    def run(self) -> None:
        self.install()
        self.write_rules()
        arguments = ["--runtime", self.options.runtime] if self.options.runtime else []
        with self.sbx.terminal("run", *arguments, "shell", ".") as terminal:
            self.start_sandbox(terminal)
            self.send_requests(terminal)
            self.look_closely(terminal)
            self.ask_the_internet()
            self.ask_the_host()
            self.read_the_log()
            if self.options.bypass_attempts:
                self.attempt_bypasses()
            self.delete_the_first_rule(terminal)
            self.leave(terminal)

    def install(self) -> None:
        self.tell.step("A fresh installation in a small internet of its own")
        self.say_sbx("policy", "init", "deny-all")
        self.tell.say("Locked Down: nothing leaves a sandbox until a rule says so.")

    def say_sbx(self, *arguments: str) -> None:
        shown = (f'"{argument}"' if " " in argument else argument for argument in arguments)
        self.tell.typed(f"sbx {' '.join(shown)}")
        self.tell.shown(self.sbx.sbx(*arguments).out)

    def rules(self) -> list[dict[str, Any]]:
        rules: list[dict[str, Any]] = self.sbx.sbx_json("policy", "ls")["rules"]
        return rules

    def write_rules(self) -> None:
        self.tell.step("Three rules")
        for rule in RULES:
            self.say_sbx("policy", rule.effect, "network", "--name", rule.name, *PROTOCOLS, *rule.resources)
        self.say_sbx("policy", "ls")
        self.tell.check(*check_rules(self.rules()))

    def start_sandbox(self, terminal: Terminal) -> None:
        self.tell.step("A real sandbox")
        self.tell.typed("sbx run shell .")
        terminal.await_shell()
        self.tell.shown(terminal.greeting.strip().rpartition("\n")[0])
        running = self.sbx.sbx_json("ls")["sandboxes"]
        self.tell.check(equal("one sandbox is running", ["running"], [each["status"] for each in running]))
        if running:
            self.sandbox = running[0]["name"]
            isolation, enforcement = running[0].get("isolation", ""), running[0].get("enforcement", "")
            self.tell.say(f"`{self.sandbox}` runs with isolation `{isolation}`.")
            self.tell.check(equal("its enclosure is proven tight", "enforcing", enforcement))

    def send_requests(self, terminal: Terminal) -> None:
        self.tell.step("Three requests leave it")
        self.world.forget()
        outputs = {}
        for request in REQUESTS:
            typed = terminal.enter(request.line)
            self.tell.typed(request.line, prompt="sandbox $")
            self.tell.shown(typed.output)
            outputs[request.host] = typed.output
        rows = [(each.host, outputs[each.host].strip().rpartition(" ")[2], each.meaning) for each in REQUESTS]
        self.tell.table(("Destination", "Code", "What it means"), rows)
        self.tell.check(*check_requests(outputs))

    def look_closely(self, terminal: Terminal) -> None:
        self.tell.step("The refusal up close")
        outputs = [terminal.enter(line) for line in (VERBOSE, VERBOSE_END, VERBOSE_HTTP11, BLOCKED_BODY)]
        telling = (
            ("proxy env", "> CONNECT", "< HTTP/1", "CONNECT tunnel", "subject:", "issuer:"),
            ("< HTTP/2",),
            ("< HTTP/1.1 403",),
            (),
        )
        for typed, only in zip(outputs, telling, strict=True):
            self.tell.typed(typed.line, prompt="sandbox $")
            self.tell.shown(typed.output, only=only)
        self.tell.check(*check_close_up(*(typed.output for typed in outputs)))

    def ask_the_internet(self) -> None:
        self.tell.step("What the sites saw")
        self.tell.say(
            "A packet counter stands at the far end of the host's only link. Since the first request:"
        )
        sightings = self.world.sightings()
        rows = [
            (each.host, str(sightings.packets_to(each.host)), str(sightings.connections_to(each.host)))
            for each in REQUESTS
        ]
        self.tell.table(("Site", "Packets", "Connections"), rows)
        self.tell.check(*check_silence(sightings))

    def ask_the_host(self) -> None:
        self.tell.step("For contrast, the host itself")
        self.world.forget()
        ran = self.sbx.host(*HOST_VERBOSE, must=False)
        self.tell.typed(" ".join(HOST_VERBOSE), prompt="host $")
        self.tell.shown(ran.err, only=("subject:", "issuer:", "< HTTP/"))
        self.tell.check(*check_host(ran.err, self.world.sightings()))

    def read_the_log(self) -> None:
        self.tell.step("The audit trail")
        ran = self.sbx.sbx("policy", "log", self.sandbox)
        self.tell.typed(ran.command)
        self.tell.shown(ran.out, only=[request.host for request in REQUESTS])
        self.tell.check(*check_log(ran.out))

    def attempt_bypasses(self) -> None:
        self.tell.step("Attempts to get around it")
        self.tell.say(
            "Each is made on the host first, where it works. Then inside, with the packet counter running."
        )
        try_to_get_out(self.sbx, self.sandbox, self.tell)

    def delete_the_first_rule(self, terminal: Terminal) -> None:
        self.tell.step("No hidden baseline: delete rule 1, in the running sandbox")
        identity = next((rule["id"] for rule in self.rules() if rule["name"] == RULES[0].name), "")
        self.say_sbx("policy", "rm", "network", "--id", identity.removeprefix("local:"))
        typed = terminal.enter(REQUESTS[0].line)
        self.tell.typed(typed.line, prompt="sandbox $")
        self.tell.shown(typed.output)
        self.tell.check(*check_no_baseline(typed.output, self.rules()))

    def leave(self, terminal: Terminal) -> None:
        self.tell.step("Exit")
        self.tell.typed("exit", prompt="sandbox $")
        code = terminal.leave()
        self.tell.check(*check_departure(code, self.sandbox, self.sbx.sbx_json("ls")["sandboxes"]))
        self.tell.say("The sandbox was anonymous: everything outside the workspace is gone with it.")


def _interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main(options: Options) -> int:
    """Tell the story; return the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C: everything is put away first
        signal.signal(number, _interrupted)
    narrator = Narrator(Console(highlight=False, markup=False, emoji=False), as_json=options.json)
    begun = time.monotonic()
    failure = ""
    narrator.title(
        "Three curls: a sandbox whose only way out is policy",
        "Sandbox, gateway and policy are real; a small internet of the demo's own stands in for the big one.",
    )
    try:
        with World.open() as world:
            installation = Installation(world, environ=own_environment())
            try:
                installation.prepare()
                Demo(installation, narrator, options).run()
            except (CommandError, SilenceError, json.JSONDecodeError, KeyError) as error:
                failure = f"{error}" if isinstance(error, CommandError | SilenceError) else repr(error)
                failure = f"{failure}\n\nthe daemon's log ends with:\n{installation.daemon_log()}"
            finally:
                installation.leave()
    except RingfenceError as error:
        failure = f"{error}\n  hint: {error.hint}" if error.hint else str(error)
    except KeyboardInterrupt:
        print("\ninterrupted; everything was put away", file=sys.stderr)
        return 130
    return 0 if narrator.end(time.monotonic() - begun, failure) else 1
