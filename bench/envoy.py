"""Envoy as a peer: an explicit proxy that intercepts through an internal listener, by a bootstrap made here.

Its leaf is one static certificate with wildcards: minting on demand needs a secret discovery service beside it, so the
row of never-seen hosts is not asked of it, and its other rows are as cheap as Envoy gets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TYPE = "type.googleapis.com/envoy."
_MANY = {
    "thresholds": [{"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000}]
}
_RESOLVER = {
    "name": "envoy.network.dns_resolver.getaddrinfo",
    "typed_config": {
        "@type": f"{_TYPE}extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig"
    },
}
_NAMES = {
    "name": "names",
    "dns_lookup_family": "V4_ONLY",
    "max_hosts": 100_000,
    "typed_dns_resolver_config": _RESOLVER,
}
_REFUSAL = {"status": 403, "body": {"inline_string": "blocked\n"}}
_CONNECT = {"connect_matcher": {}}


def write_bootstrap(work: Path, port: int) -> Path:
    """Write the configuration for a candidate (see :mod:`bench.candidates`) and return where it is."""
    internal = {
        "match": _CONNECT,
        "route": {
            "cluster": "inspect",
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }
    tunnel = {**internal, "route": {**internal["route"], "cluster": "plain"}}
    refused = {"match": {"prefix": "/"}, "direct_response": _REFUSAL}
    outside = [
        {
            "name": "refused",
            "domains": ["*.denied.test", "*.denied.test:80"],
            "routes": [{"match": _CONNECT, "direct_response": _REFUSAL}, refused],
        },
        {"name": "unread", "domains": ["*.bypass.test:443"], "routes": [tunnel]},
        {
            "name": "inspected",
            "domains": ["*"],
            "routes": [
                internal,
                {"match": {"prefix": "/"}, "route": {"cluster": "plain", "timeout": "0s"}},
            ],
        },
    ]
    inside = [
        {"name": "refused", "domains": ["*.denied.test"], "routes": [refused]},
        {
            "name": "allowed",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "secure", "timeout": "0s"}}],
        },
    ]
    leaf = {"certificate_chain": _file(work / "chain.pem"), "private_key": _file(work / "key.pem")}
    terminate = {
        "@type": f"{_TYPE}extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [leaf]},
    }
    verify = {
        "@type": f"{_TYPE}extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"validation_context": {"trusted_ca": _file(work / "root.pem")}},
    }
    bootstrap = {
        "node": {"id": "bench", "cluster": "bench"},
        "bootstrap_extensions": [
            _typed(
                "envoy.bootstrap.internal_listener",
                "extensions.bootstrap.internal_listener.v3.InternalListener",
            )
        ],
        "static_resources": {
            "listeners": [
                {
                    "name": "proxy",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "tcp_backlog_size": 4096,
                    "filter_chains": [{"filters": [_http("proxy", outside, work, connect=True)]}],
                },
                {
                    "name": "inspect",
                    "internal_listener": {},
                    "filter_chains": [
                        {
                            "transport_socket": {"name": "tls", "typed_config": terminate},
                            "filters": [_http("inspect", inside, work, connect=False)],
                        }
                    ],
                },
            ],
            "clusters": [
                _cluster("plain"),
                {
                    **_cluster("secure"),
                    "transport_socket": {"name": "tls", "typed_config": verify},
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": f"{_TYPE}extensions.upstreams.http.v3.HttpProtocolOptions",
                            "upstream_http_protocol_options": {"auto_sni": True, "auto_san_validation": True},
                            "explicit_http_config": {"http_protocol_options": {}},
                        }
                    },
                },
                {
                    "name": "inspect",
                    "circuit_breakers": _MANY,
                    "load_assignment": {
                        "cluster_name": "inspect",
                        "endpoints": [{"lb_endpoints": [{"endpoint": _INSIDE}]}],
                    },
                    "transport_socket": _typed(
                        "internal",
                        "extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
                        transport_socket=_typed(
                            "raw", "extensions.transport_sockets.raw_buffer.v3.RawBuffer"
                        ),
                    ),
                },
            ],
        },
    }
    path = work / "envoy.json"
    path.write_text(json.dumps(bootstrap, indent=1))
    return path


_INSIDE = {"address": {"envoy_internal_address": {"server_listener_name": "inspect"}}}


def _typed(name: str, type_: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": _TYPE + type_, **more}}


def _file(path: Path) -> dict[str, str]:
    return {"filename": str(path)}


def _cluster(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "lb_policy": "CLUSTER_PROVIDED",
        "circuit_breakers": _MANY,
        "cluster_type": _typed(
            "envoy.clusters.dynamic_forward_proxy",
            "extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
            dns_cache_config=_NAMES,
        ),
    }


def _http(name: str, hosts: list[dict[str, Any]], work: Path, *, connect: bool) -> dict[str, Any]:
    filters = [
        _typed(
            "envoy.filters.http.dynamic_forward_proxy",
            "extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
            dns_cache_config=_NAMES,
        ),
        _typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router"),
    ]
    log = _typed(
        "log", "extensions.access_loggers.file.v3.FileAccessLog", path=str(work / "envoy-access.log")
    )
    more: dict[str, Any] = {"upgrade_configs": [{"upgrade_type": "CONNECT"}]} if connect else {}
    return _typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        codec_type="AUTO",
        generate_request_id=False,
        route_config={"name": name, "virtual_hosts": hosts},
        http_filters=filters,
        stream_idle_timeout="0s",
        access_log=[log],
        **more,
    )
