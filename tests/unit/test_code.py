"""The codes, held against the tables of the protocols' specifications."""

from __future__ import annotations

import pickle

import pytest

from connectrpc.code import ConnectErrorCode

# Connect "Error Codes"; gRPC's numbers are 1 to 16 in this order.
ROWS = [
    ("canceled", 499),
    ("unknown", 500),
    ("invalid_argument", 400),
    ("deadline_exceeded", 504),
    ("not_found", 404),
    ("already_exists", 409),
    ("permission_denied", 403),
    ("resource_exhausted", 429),
    ("failed_precondition", 400),
    ("aborted", 409),
    ("out_of_range", 400),
    ("unimplemented", 501),
    ("internal", 500),
    ("unavailable", 503),
    ("data_loss", 500),
    ("unauthenticated", 401),
]


@pytest.mark.parametrize(("number", "row"), [*enumerate(ROWS, 1)])
def test_rows(number: int, row: tuple[str, int]) -> None:
    name, status = row
    code = ConnectErrorCode[name.upper()]
    assert (code.code_name, code.http_status, code.grpc_number) == (name, status, number)
    assert ConnectErrorCode.from_name(name) is code
    assert ConnectErrorCode.from_grpc_number(number) is code
    assert pickle.loads(pickle.dumps(code)) is code


def test_there_are_sixteen() -> None:
    assert [code.code_name for code in ConnectErrorCode] == [name for name, _ in ROWS]


@pytest.mark.parametrize("name", ["", "NOT_FOUND", "not-found", "ok", "cancelled"])
def test_names_that_are_none(name: str) -> None:
    assert ConnectErrorCode.from_name(name) is None


@pytest.mark.parametrize("number", [-1, 0, 17])
def test_numbers_that_are_none(number: int) -> None:
    assert ConnectErrorCode.from_grpc_number(number) is None


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "internal"),
        (401, "unauthenticated"),
        (403, "permission_denied"),
        (404, "unimplemented"),
        (429, "unavailable"),
        (502, "unavailable"),
        (503, "unavailable"),
        (504, "unavailable"),
        (204, "unknown"),
        (302, "unknown"),
        (409, "unknown"),
        (499, "unknown"),
        (500, "unknown"),
        (501, "unknown"),
        (599, "unknown"),
    ],
)
def test_http_status_without_an_error(status: int, name: str) -> None:
    assert ConnectErrorCode.from_http_status(status).code_name == name
