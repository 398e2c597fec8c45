"""The sixteen error codes. Everything about one of them stands in its row."""

from __future__ import annotations

import enum

__all__ = ["ConnectErrorCode"]


class ConnectErrorCode(enum.Enum):
    """Why an RPC failed: one of the sixteen codes that Connect and gRPC share.

    Attributes:
        code_name: the name on Connect's wire, such as ``"invalid_argument"``.
        http_status: the status of a unary Connect answer with this error.
        grpc_number: the number on gRPC's wire.
    """

    code_name: str
    http_status: int
    grpc_number: int

    CANCELED = ("canceled", 499, 1)
    UNKNOWN = ("unknown", 500, 2)
    INVALID_ARGUMENT = ("invalid_argument", 400, 3)
    DEADLINE_EXCEEDED = ("deadline_exceeded", 504, 4)
    NOT_FOUND = ("not_found", 404, 5)
    ALREADY_EXISTS = ("already_exists", 409, 6)
    PERMISSION_DENIED = ("permission_denied", 403, 7)
    RESOURCE_EXHAUSTED = ("resource_exhausted", 429, 8)
    FAILED_PRECONDITION = ("failed_precondition", 400, 9)
    ABORTED = ("aborted", 409, 10)
    OUT_OF_RANGE = ("out_of_range", 400, 11)
    UNIMPLEMENTED = ("unimplemented", 501, 12)
    INTERNAL = ("internal", 500, 13)
    UNAVAILABLE = ("unavailable", 503, 14)
    DATA_LOSS = ("data_loss", 500, 15)
    UNAUTHENTICATED = ("unauthenticated", 401, 16)

    def __init__(self, code_name: str, http_status: int, grpc_number: int) -> None:
        self.code_name = code_name
        self.http_status = http_status
        self.grpc_number = grpc_number

    @classmethod
    def from_name(cls, name: str) -> ConnectErrorCode | None:
        """The code that Connect's wire calls ``name``, or None."""
        return _BY_NAME.get(name)

    @classmethod
    def from_grpc_number(cls, number: int) -> ConnectErrorCode | None:
        """The code with gRPC's ``number``, or None (0, which is OK, included)."""
        return _BY_GRPC_NUMBER.get(number)

    @classmethod
    def from_http_status(cls, status: int) -> ConnectErrorCode:
        """What a failed HTTP answer without an RPC error of its own stands for.

        The rows are those of "HTTP to Error Code" in the Connect protocol; gRPC's are the same.
        """
        return _BY_HTTP_STATUS.get(status, cls.UNKNOWN)


_BY_NAME = {code.code_name: code for code in ConnectErrorCode}
_BY_GRPC_NUMBER = {code.grpc_number: code for code in ConnectErrorCode}
# Not the inverse of `http_status`: that one is for answers which say their code themselves.
_BY_HTTP_STATUS = {
    400: ConnectErrorCode.INTERNAL,
    401: ConnectErrorCode.UNAUTHENTICATED,
    403: ConnectErrorCode.PERMISSION_DENIED,
    404: ConnectErrorCode.UNIMPLEMENTED,
    429: ConnectErrorCode.UNAVAILABLE,
    502: ConnectErrorCode.UNAVAILABLE,
    503: ConnectErrorCode.UNAVAILABLE,
    504: ConnectErrorCode.UNAVAILABLE,
}
