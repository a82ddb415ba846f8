"""What may leave a sandbox, and what may enter one: values and functions, no I/O, no clock.

``compose`` builds an :class:`EffectivePolicy` out of its sources; ``decide``, ``judge_address`` and ``decide_file``
answer. Text becomes a value in ``parse_resource``, ``parse_rule``, ``parse_document``, ``parse_target`` and
``canonical_host``, and there alone it can fail, with :class:`InvalidPolicy`.
"""

from ringfence.policy.addresses import Guards
from ringfence.policy.document import (
    Check,
    PolicyDocument,
    document_record,
    parse_document,
    parse_rule,
    rule_record,
)
from ringfence.policy.effective import EffectivePolicy, Entry, Sources, compose
from ringfence.policy.engine import decide, judge_address
from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.governance import Base, Delegation, Standing, Statement
from ringfence.policy.model import (
    Budget,
    Decision,
    Effect,
    FileAction,
    FilesystemAccess,
    Inspect,
    Kind,
    Mode,
    NetworkAccess,
    Reason,
    RuleRef,
    Spent,
    Transport,
    Verdict,
)
from ringfence.policy.mounts import decide_file
from ringfence.policy.names import (
    GATEWAY_NAME,
    HOST_NAME,
    LOCALHOST,
    canonical_host,
    canonical_name,
    parse_port,
    split_authority,
)
from ringfence.policy.patterns import Resource, parse_resource, parse_resources, split_resources
from ringfence.policy.rule import Rule, warnings
from ringfence.policy.targets import authority_text, parse_target, target_text

__all__ = [
    "GATEWAY_NAME",
    "HOST_NAME",
    "LOCALHOST",
    "Base",
    "Budget",
    "Check",
    "Decision",
    "Delegation",
    "Effect",
    "EffectivePolicy",
    "Entry",
    "FileAction",
    "FilesystemAccess",
    "Guards",
    "Inspect",
    "InvalidPolicy",
    "Kind",
    "Mode",
    "NetworkAccess",
    "PolicyDocument",
    "Reason",
    "Resource",
    "Rule",
    "RuleRef",
    "Sources",
    "Spent",
    "Standing",
    "Statement",
    "Transport",
    "Verdict",
    "authority_text",
    "canonical_host",
    "canonical_name",
    "compose",
    "decide",
    "decide_file",
    "document_record",
    "judge_address",
    "parse_document",
    "parse_port",
    "parse_resource",
    "parse_resources",
    "parse_rule",
    "parse_target",
    "rule_record",
    "split_authority",
    "split_resources",
    "target_text",
    "warnings",
]
