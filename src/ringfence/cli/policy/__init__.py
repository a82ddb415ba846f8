"""``sbx policy``: its table of commands and the small groups below it."""

from __future__ import annotations

from ringfence.cli.commands import Entry, Group

_LISTING, _RULES = "ringfence.cli.policy.listing", "ringfence.cli.policy.rules"
_PRESETS, _DECISIONS = "ringfence.cli.policy.presets", "ringfence.cli.policy.decisions"
_LOG, _DOCUMENTS = "ringfence.cli.policy.log", "ringfence.cli.policy.documents"


def _network(name: str, module: str, attribute: str, line: str, text: str) -> Group:
    """The group that names the kind of a rule; `network` is the one that people write by hand."""
    return Group(
        name, sections={"Kinds": {"network": Entry(module=module, attribute=attribute, line=line)}}, help=text
    )


allow = _network(
    "allow", _RULES, "allow_network", "Allow destinations.", "Allow sandboxes to reach something."
)
deny = _network(
    "deny", _RULES, "deny_network", "Deny destinations.", "Deny sandboxes something; a deny always wins."
)
rm = _network("rm", _RULES, "rm_network", "Remove a rule of yours.", "Remove a rule that you added.")
check = _network(
    "check",
    _DECISIONS,
    "check_network",
    "Ask about a destination.",
    "Ask what policy would say, without asking it to act.",
)
preset = Group(
    "preset",
    sections={
        "Commands": {
            "ls": Entry(
                module=_PRESETS, attribute="ls", line="List presets, and the groups of the one in force."
            ),
            "enable": Entry(
                module=_PRESETS, attribute="enable", line="Switch a group or part of a group on."
            ),
            "disable": Entry(
                module=_PRESETS, attribute="disable", line="Switch a group or part of a group off."
            ),
        }
    },
    help="Look at the preset in force and switch parts of it.",
)

policy = Group(
    "policy",
    sections={
        "Rules": {
            "ls": Entry(
                module=_LISTING, attribute="ls", line="List the rules in force, and where they come from."
            ),
            "allow": Entry(module=__name__, attribute="allow", line="Allow network destinations."),
            "deny": Entry(module=__name__, attribute="deny", line="Deny network destinations."),
            "rm": Entry(module=__name__, attribute="rm", line="Remove a rule that you added."),
        },
        "Presets": {
            "init": Entry(module=_PRESETS, attribute="init", line="Choose the preset of a new installation."),
            "set-default": Entry(module=_PRESETS, attribute="init", line="", hidden=True),
            "reset": Entry(module=_PRESETS, attribute="reset", line="Start over from a preset."),
            "preset": Entry(
                module=__name__, attribute="preset", line="Look at the preset; switch parts of it."
            ),
        },
        "Decisions": {
            "check": Entry(
                module=__name__, attribute="check", line="Ask what policy says about a destination."
            ),
            "explain": Entry(
                module=_DECISIONS, attribute="explain", line="Explain a decision that was made."
            ),
            "log": Entry(module=_LOG, attribute="log", line="Watch decisions as they are made."),
        },
        "Documents": {
            "export": Entry(
                module=_DOCUMENTS, attribute="export", line="Print your rules as a policy document."
            ),
            "import": Entry(
                module=_DOCUMENTS, attribute="import_", line="Replace your rules by a document's."
            ),
            "validate": Entry(
                module=_DOCUMENTS, attribute="validate", line="Check a document without importing it."
            ),
            "fmt": Entry(module=_DOCUMENTS, attribute="fmt", line="Print a document in canonical form."),
            "test": Entry(module=_DOCUMENTS, attribute="test", line="Run a document's tests."),
        },
    },
    help="Say what sandboxes may reach, and see what they did.",
)
