"""``sbx secret``: credentials stay on this machine; sandboxes see placeholders, and the gateway puts the value in."""

from __future__ import annotations

from ringfence.cli.commands import Entry, Group

_SETTING, _LISTING = "ringfence.cli.secret.setting", "ringfence.cli.secret.listing"

secret = Group(
    "secret",
    sections={
        "Storing": {
            "set": Entry(
                module=_SETTING, attribute="set_", line="Store a service's or a registry's credential."
            ),
            "set-custom": Entry(
                module=_SETTING, attribute="set_custom", line="Store a credential for hosts that you name."
            ),
            "import": Entry(
                module="ringfence.cli.secret.importing",
                attribute="import_",
                line="Store what well-known variables of this shell hold.",
            ),
        },
        "Looking": {
            "ls": Entry(module=_LISTING, attribute="ls", line="List secrets, without their values."),
            "rm": Entry(module=_LISTING, attribute="rm", line="Remove secrets."),
        },
    },
    help="Keep credentials on this machine. A sandbox sees a placeholder; the gateway puts the value into requests "
    "to the hosts that it belongs to, and nowhere else. Changes reach running sandboxes at once.",
)
