"""What either colour of a call tells about how it went."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from multidict import CIMultiDict

from connectrpc.errors import ConnectError, ConnectErrorCode

if TYPE_CHECKING:
    from connectrpc._core.call import StreamClientCall
    from connectrpc._core.metadata import Metadata
    from connectrpc.interceptors import Response

__all__ = ["InterceptedOutcome", "StreamOutcome", "kept"]


def kept(error: BaseException | None) -> ConnectError | None:
    """An error to be asked for later: without the frames in which it was raised, and all that they hold.

    What is no ``ConnectError``, such as a cancellation, has left the stream in the midst of reading. It was raised, but
    the stream is over: whoever goes on with it must not take that for its end.
    """
    if error is None:
        return None
    if isinstance(error, ConnectError):
        return error.with_traceback(None)
    return ConnectError(ConnectErrorCode.CANCELED, f"reading the stream was broken off by {type(error).__name__}")


class _Outcome(abc.ABC):
    __slots__ = ("_done", "_error")

    _done: bool
    _error: ConnectError | None

    @abc.abstractmethod
    def _metadata(self) -> Metadata: ...

    def done(self) -> bool:
        return self._done

    def error(self) -> ConnectError | None:
        return self._error

    def response_headers(self) -> CIMultiDict[str]:
        return self._metadata()[0]

    def response_trailers(self) -> CIMultiDict[str]:
        if not self._done:
            raise RuntimeError("the trailers come last, and the stream is not over yet")
        return self._metadata()[1]


class StreamOutcome(_Outcome):
    """Of a stream without interceptors."""

    __slots__ = ("_call",)

    _call: StreamClientCall

    def raise_error(self) -> None:
        """Raise what the stream has failed with, if it has, to interceptors, and keep it no longer.

        They may go on without it, and its traceback has frames that have the stream.
        """
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # which has this frame

    def _metadata(self) -> Metadata:
        return self._call.metadata()


class InterceptedOutcome(_Outcome):
    """Of a stream whose messages have come through interceptors: as the outermost of them left it."""

    __slots__ = ("_response",)

    _response: Response | None

    def _metadata(self) -> Metadata:
        if self._response is not None:
            return self._response.headers, self._response.trailers
        if self._error is not None:
            return self._error.response_headers(), self._error.response_trailers()
        return CIMultiDict(), CIMultiDict()
