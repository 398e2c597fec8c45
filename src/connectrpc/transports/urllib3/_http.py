"""Answers as ``http.client`` reads them, but for what it leaves undone."""

from __future__ import annotations

import http.client
from typing import Any

__all__ = ["HTTPResponse", "NoAnswerError"]


class _Lines:
    """The lines of a head, the last of which is remembered."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.last = b""

    def readline(self, limit: int) -> bytes:
        self.last = self._file.readline(limit)
        return self.last

    def close(self) -> None:
        self._file.close()


class NoAnswerError(http.client.BadStatusLine):
    """What came instead of an answer, in our own words."""


class HTTPResponse(http.client.HTTPResponse):
    """What ``http.client`` leaves undone: interim answers other than 100, which would pass for the answer and leave
    that to the connection's next call; heads that break off, which would pass for whole ones; and chunks whose size is
    below zero, which would have none."""

    def begin(self) -> None:
        if self.headers is not None:
            return
        file = self.fp
        lines: Any = _Lines(file)
        self.fp = lines
        try:
            super().begin()
        finally:
            if self.fp is lines:
                self.fp = file
        if lines.last not in _BLANK:
            raise http.client.IncompleteRead(lines.last)

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 < status < 200:  # 100 is passed over by begin()
                return version, status, reason
            if status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                raise NoAnswerError("101, which nobody asked for")
            for _ in range(_INTERIM_MAX_LINES):
                if self.fp.readline(_LINE_MAX_BYTES) in (*_BLANK, b""):
                    break
            else:
                raise NoAnswerError("an interim answer without end")

    def _read_next_chunk_size(self) -> int:
        # All of it, and no call of what it stands for: each message of a stream comes by here.
        assert self.fp is not None
        line = self.fp.readline(_LINE_MAX_BYTES + 1)
        size = int(line.partition(b";")[0], 16)
        if size < 0 or len(line) > _LINE_MAX_BYTES:
            raise ValueError  # as where it is no number
        return size


_BLANK = (b"\r\n", b"\n")
_INTERIM_MAX_LINES = 100
_LINE_MAX_BYTES = 65536
