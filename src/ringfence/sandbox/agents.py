"""The table of agents: what each is called, what it runs, and whether it can be had yet.

``shell`` needs nothing but a template. The others are known by name, so that their names stay reserved
and asking for one fails with the reason instead of with ``not found``; no half-installed agent ever
starts.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One row. ``entry`` is the command of an attach session, looked up on the sandbox's ``PATH``."""

    name: str
    title: str
    entry: tuple[str, ...] = ()
    """Empty: the agent cannot be installed yet."""
    aliases: tuple[str, ...] = ()

    @property
    def available(self) -> bool:
        return bool(self.entry)


_TABLE = (
    Agent(name="shell", title="a plain shell", entry=("bash",)),
    Agent(name="claude", title="Claude Code"),
    Agent(name="codex", title="OpenAI Codex"),
    Agent(name="copilot", title="GitHub Copilot CLI"),
    Agent(name="cursor", title="Cursor CLI"),
    Agent(name="docker-agent", title="Docker Agent", aliases=("cagent",)),
    Agent(name="droid", title="Factory Droid"),
    Agent(name="gemini", title="Gemini CLI"),
    Agent(name="kiro", title="Kiro CLI"),
    Agent(name="opencode", title="OpenCode"),
)

AGENTS = {name: agent for agent in _TABLE for name in (agent.name, *agent.aliases)}
RESERVED = frozenset(AGENTS)


class AgentError(ValueError):
    """An agent that is unknown, or that cannot be installed; ``hint`` says what can be done."""

    def __init__(self, message: str, *, hint: str, known: bool) -> None:
        super().__init__(message)
        self.hint = hint
        self.known = known


def find_agent(name: str) -> Agent:
    """Return the row of an agent that can start, or say why there is none."""
    agent = AGENTS.get(name)
    if agent is None:
        listed = ", ".join(sorted(row.name for row in _TABLE))
        raise AgentError(f"unknown agent `{name[:80]}`", hint=f"agents are {listed}", known=False)
    if not agent.available:
        raise AgentError(
            f"agent `{agent.name}` ({agent.title}) cannot be installed yet",
            hint="use the agent `shell`, and install the tool inside the sandbox as policy allows",
            known=True,
        )
    return agent
