"""A gRPC service of all four kinds of streams, served by grpcio without TLS: ``python3 calls.py PORT``.

Run by the python3 that has grpcio, not by the tests' own. Messages are bytes; no code is generated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

SERVICE = "clients.Echo"


def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
    context.set_trailing_metadata((("x-kind", "unary"),))
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you wished")
    return request.upper()


def many(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    for number in range(int(request)):
        yield b"%d" % number


def collect(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
    return b"+".join(requests)


def talk(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    for request in requests:
        yield request.upper()


HANDLERS = grpc.method_handlers_generic_handler(
    SERVICE,
    {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Many": grpc.unary_stream_rpc_method_handler(many),
        "Collect": grpc.stream_unary_rpc_method_handler(collect),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
    },
)

if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((HANDLERS,))
    if not server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}"):
        sys.exit("the port is taken")
    server.start()
    print("ready", flush=True)
    sys.stdin.read()
    server.stop(None)
