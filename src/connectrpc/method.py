"""What the runtime knows of an RPC: constants that generated code builds once, at import."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from google.protobuf.message import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["IdempotencyLevel", "Method", "MethodKind", "Service"]

ReqT = TypeVar("ReqT", bound=Message)
ResT = TypeVar("ResT", bound=Message)


class MethodKind(enum.Enum):
    """Which side of an RPC sends a stream of messages instead of exactly one.

    Attributes:
        client_streams: whether the request is a stream.
        server_streams: whether the response is a stream.
    """

    client_streams: bool
    server_streams: bool

    UNARY = (False, False)
    SERVER_STREAM = (False, True)
    CLIENT_STREAM = (True, False)
    BIDI_STREAM = (True, True)

    def __init__(self, client_streams: bool, server_streams: bool) -> None:
        self.client_streams = client_streams
        self.server_streams = server_streams


class IdempotencyLevel(enum.Enum):
    """What the ``.proto`` promises about calling a method again (``option idempotency_level``)."""

    UNKNOWN = "IDEMPOTENCY_UNKNOWN"
    NO_SIDE_EFFECTS = "NO_SIDE_EFFECTS"
    IDEMPOTENT = "IDEMPOTENT"


class Method(Generic[ReqT, ResT]):
    """One RPC of a service. Immutable; shared by all clients and apps, and by all threads.

    Attributes:
        service_name: the service's full name, such as ``"connectrpc.eliza.v1.ElizaService"``.
        name: the name in the ``.proto``, such as ``"Say"``.
        kind: which sides stream.
        input: the class of a request message.
        output: the class of a response message.
        python_name: the attribute of an implementation that handles it, such as ``"say"``.
        idempotency_level: as the ``.proto`` declares it.
        path: ``"/<service_name>/<name>"``.
    """

    __slots__ = (
        "idempotency_level",
        "input",
        "kind",
        "name",
        "output",
        "path",
        "python_name",
        "service_name",
    )

    def __init__(
        self,
        service_name: str,
        name: str,
        kind: MethodKind,
        input: type[ReqT],
        output: type[ResT],
        *,
        python_name: str,
        idempotency_level: IdempotencyLevel = IdempotencyLevel.UNKNOWN,
    ) -> None:
        self.service_name = service_name
        self.name = name
        self.kind = kind
        self.input = input
        self.output = output
        self.python_name = python_name
        self.idempotency_level = idempotency_level
        self.path = f"/{service_name}/{name}"

    def __repr__(self) -> str:
        return f"<Method {self.path} {self.kind.name}>"


class Service:
    """A service: its full name and its methods. Immutable; shared by all apps that serve it.

    Attributes:
        name: the full name in the ``.proto``.
        methods: every RPC, in file order.
    """

    __slots__ = ("methods", "name")

    def __init__(self, name: str, methods: Sequence[Method[Any, Any]]) -> None:
        self.name = name
        self.methods = tuple(methods)

    def __repr__(self) -> str:
        return f"<Service {self.name}>"
