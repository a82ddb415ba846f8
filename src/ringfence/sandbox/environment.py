"""What a command inside a sandbox finds in its environment, and the files that make its names and
certificates work.

Nothing of the host's environment is copied. The proxy variables are a convenience for clients that honour
them; a client that removes them meets the same gateway in the same network. ``host.docker.internal`` is
never in ``NO_PROXY``: its requests are policed like all others.
"""

from __future__ import annotations

from collections.abc import Mapping

from ringfence.sandbox.model import Owner, SandboxSpec

HOME = "/home/agent"
USER = "agent"
MOUNTLESS = f"{HOME}/workspace"
PROXY = "http://gateway.docker.internal:3128"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
OWN_CERTIFICATE = "/etc/ssl/certs/ringfence.pem"
JAVA_TRUST = "/etc/ssl/certs/java/cacerts"

_PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_NO_PROXY = "localhost,127.0.0.1,::1"
_BUNDLE_VARIABLES = (
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "PIP_CERT",
)
RESERVED = frozenset({"SANDBOX_NAME", "SANDBOX_ID", "IS_SANDBOX", "WORKSPACE_DIR"})
"""What names the sandbox itself and is never a person's to set."""


def working_directory(spec: SandboxSpec) -> str:
    """Return where a session starts: the primary workspace, or a directory of the agent's own."""
    return spec.workspaces[0].path if spec.workspaces else MOUNTLESS


def environment(spec: SandboxSpec, placeholders: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables of every command in a sandbox. ``placeholders`` stand for what is bound on the host; a
    person's own come last, also before these: who sets a key with ``-e`` wants that one to be seen inside.
    """
    variables = {
        "HOME": HOME,
        "USER": USER,
        "LOGNAME": USER,
        "SHELL": "/bin/bash",
        "PATH": f"{HOME}/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOSTNAME": spec.name,
        "WORKSPACE_DIR": working_directory(spec),
        "SANDBOX_NAME": spec.name,
        "SANDBOX_ID": spec.id,
        "IS_SANDBOX": "1",
        "NODE_EXTRA_CA_CERTS": OWN_CERTIFICATE,
        "DENO_CERT": OWN_CERTIFICATE,
        "NODE_USE_ENV_PROXY": "1",
    }
    for name in _PROXY_VARIABLES:
        # Both cases: curl reads only the lower-case http_proxy (CVE-2016-5385), others only upper case.
        variables[name] = variables[name.lower()] = PROXY
    variables["NO_PROXY"] = variables["no_proxy"] = _NO_PROXY
    for name in _BUNDLE_VARIABLES:
        variables[name] = BUNDLE
    variables.update(placeholders or {})
    variables.update((name, value) for name, value in spec.environment if name not in RESERVED)
    return variables


OWN_VARIABLES = frozenset(
    environment(SandboxSpec(id="", name="", agent="", owner=Owner(uid=0, gid=0), runtime=""))
)
"""What every sandbox sets by itself; no placeholder may take its place."""


def network_files(spec: SandboxSpec, *, gateway: str, host: str, gateway6: str) -> Mapping[str, bytes]:
    """Return the files that make names work inside: one resolver, two names that are not public."""
    hosts = (
        "127.0.0.1 localhost",
        "::1 localhost ip6-localhost ip6-loopback",
        f"127.0.1.1 {spec.name}",
        f"{gateway} gateway.docker.internal",
        f"{host} host.docker.internal",
    )
    resolvers = (
        f"nameserver {gateway}",
        f"nameserver {gateway6}",
        "options edns0 trust-ad timeout:2 attempts:2",
    )
    return {
        "/etc/hosts": ("\n".join(hosts) + "\n").encode(),
        "/etc/hostname": f"{spec.name}\n".encode(),
        "/etc/resolv.conf": ("\n".join(resolvers) + "\n").encode(),
    }
