"""``grpc/health/v1/health.proto`` in a pool of its own, and what both colours answer alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor_pool import DescriptorPool

from connectrpc._descriptors import add_file, enum, field, map_field, message, message_class, method, service_of
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.health.status import ServingStatus
from connectrpc.method import MethodKind

if TYPE_CHECKING:
    from connectrpc.health.status import Health

__all__ = [
    "HEALTH_SERVICE_PATH_PREFIX",
    "POOL",
    "SERVICE",
    "HealthCheckRequest",
    "HealthCheckResponse",
    "HealthListRequest",
    "HealthListResponse",
    "check",
    "list_statuses",
    "watched",
]

_PACKAGE = "grpc.health.v1"
_NAME = f"{_PACKAGE}.Health"
_REQUEST, _RESPONSE = f".{_PACKAGE}.HealthCheckRequest", f".{_PACKAGE}.HealthCheckResponse"
_LIST_REQUEST, _LIST_RESPONSE = f".{_PACKAGE}.HealthListRequest", f".{_PACKAGE}.HealthListResponse"
_statuses, _statuses_entry = map_field(1, "statuses", f"message {_RESPONSE}", within=_LIST_RESPONSE)

POOL = DescriptorPool()
"""Where the messages and the service are described."""

add_file(
    POOL,
    "grpc/health/v1/health.proto",
    _PACKAGE,
    "Health",
    [
        method("Check", _REQUEST, _RESPONSE, MethodKind.UNARY),
        method("List", _LIST_REQUEST, _LIST_RESPONSE, MethodKind.UNARY),
        method("Watch", _REQUEST, _RESPONSE, MethodKind.SERVER_STREAM),
    ],
    [
        message("HealthCheckRequest", field(1, "service", "string")),
        message(
            "HealthCheckResponse",
            field(1, "status", f"enum {_RESPONSE}.ServingStatus"),
            enums=[enum("ServingStatus", *(status.name for status in ServingStatus))],
        ),
        message("HealthListRequest"),
        message("HealthListResponse", _statuses, messages=[_statuses_entry]),
    ],
)

HealthCheckRequest = message_class(POOL, _REQUEST[1:])
HealthCheckResponse = message_class(POOL, _RESPONSE[1:])
HealthListRequest = message_class(POOL, _LIST_REQUEST[1:])
HealthListResponse = message_class(POOL, _LIST_RESPONSE[1:])

SERVICE = service_of(POOL, _NAME)
"""The service, as generated code would describe it."""

HEALTH_SERVICE_PATH_PREFIX = f"/{_NAME}"
"""What the paths of its methods begin with."""


def check(health: Health, service: str) -> Any:
    """The answer to ``Check``.

    Raises:
        ConnectError: ``not_found``: the service has no status.
    """
    status = health.get(service)
    if status is None:
        raise ConnectError(ConnectErrorCode.NOT_FOUND, f"the health of service {service[:100]!r} is not known")
    return HealthCheckResponse(status=status)


def list_statuses(health: Health) -> Any:
    """The answer to ``List``."""
    statuses = health.statuses().items()
    return HealthListResponse(statuses={service: HealthCheckResponse(status=status) for service, status in statuses})


def watched(health: Health, service: str) -> ServingStatus:
    """What a watcher is told."""
    status = health.get(service)
    return ServingStatus.SERVICE_UNKNOWN if status is None else status
