"""``UnaryOutput`` as callers see it."""

from __future__ import annotations

from multidict import CIMultiDict

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.unary import UnaryOutput


def test_message() -> None:
    output = UnaryOutput("m", None, lambda: (CIMultiDict({"A": "1"}), CIMultiDict({"B": "2"})))
    assert output.message() == "m"
    assert output.error() is None
    assert output.response_headers()["a"] == "1"
    assert output.response_trailers()["b"] == "2"
    assert "'m'" in repr(output)


def test_error_without_an_answer() -> None:
    error = ConnectError(ConnectErrorCode.UNAVAILABLE, "down")
    output = UnaryOutput[str](None, error, None)
    assert output.message() is None
    assert output.error() is error
    assert output.response_headers() == CIMultiDict()
    assert output.response_trailers() == CIMultiDict()
    assert "down" in repr(output)
