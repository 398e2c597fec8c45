"""The constants of generated code."""

from __future__ import annotations

import pytest
from google.protobuf.source_context_pb2 import SourceContext
from google.protobuf.type_pb2 import EnumValue

from connectrpc.method import IdempotencyLevel, Method, MethodKind, Service
from harness import BIDI, CLIENT, METHODS, NAME, PURE, SERVER, SERVICE, UNARY


def test_method() -> None:
    method = Method("a.b.C", "DoIt", MethodKind.UNARY, EnumValue, SourceContext, python_name="do_it")
    assert (method.service_name, method.name, method.python_name) == ("a.b.C", "DoIt", "do_it")
    assert method.path == "/a.b.C/DoIt"
    assert method.input is EnumValue
    assert method.output is SourceContext
    assert method.idempotency_level is IdempotencyLevel.UNKNOWN
    assert PURE.idempotency_level is IdempotencyLevel.NO_SIDE_EFFECTS
    assert "/a.b.C/DoIt" in repr(method)


@pytest.mark.parametrize(
    ("method", "client_streams", "server_streams"),
    [(UNARY, False, False), (SERVER, False, True), (CLIENT, True, False), (BIDI, True, True)],
)
def test_kinds(method: Method[EnumValue, SourceContext], client_streams: bool, server_streams: bool) -> None:
    assert method.kind.client_streams is client_streams
    assert method.kind.server_streams is server_streams


def test_service() -> None:
    assert SERVICE.name == NAME
    assert SERVICE.methods == METHODS
    assert NAME in repr(SERVICE)
    assert Service("a.Empty", []).methods == ()
