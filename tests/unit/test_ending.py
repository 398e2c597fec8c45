"""What ends a call that blocks, and what it is called then, whatever the HTTP library."""

from __future__ import annotations

import pytest

from connectrpc.cancel import CancelToken
from connectrpc.deadline import NO_DEADLINE, Deadline
from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._ending import Ending

OVER = Deadline(0)
LONG = Deadline(3_600_000)


class Call(Ending):
    """Counts how often it was to be woken."""

    woken = 0

    def _stop(self, reason: tuple[ConnectErrorCode, str]) -> None:
        self._reason = self._reason or reason
        self.woken += 1


def said(call: Ending) -> str | None:
    reason = call.reason()
    if reason is None:
        call.check()
        return None
    with pytest.raises(ConnectError) as caught:
        call.check()
    assert (caught.value.code, caught.value.message) == (reason.code, reason.message)
    return f"{reason.code.name.lower()}: {reason.message}"


@pytest.mark.parametrize(
    ("deadline", "opening", "why"),
    [
        (NO_DEADLINE, NO_DEADLINE, None),
        (LONG, LONG, None),
        (OVER, OVER, "deadline_exceeded: the deadline has passed"),
        (LONG, OVER, "deadline_exceeded: the stream was not opened in time"),
        (NO_DEADLINE, OVER, "deadline_exceeded: the stream was not opened in time"),
    ],
)
def test_deadlines(deadline: Deadline, opening: Deadline, why: str | None) -> None:
    call = Call(deadline, opening, None)
    assert said(call) == why
    call.opening = deadline
    assert said(call) == why, "what has ended it once stays"


def test_the_limit_for_the_head_ends_with_it() -> None:
    call = Call(LONG, OVER, None)
    call.opening = LONG
    assert said(call) is None


def test_what_is_late() -> None:
    assert Call(OVER, OVER, None).late().message == "the deadline has passed"
    assert Call(LONG, OVER, None).late().message == "the stream was not opened in time"


def test_a_token() -> None:
    token = CancelToken()
    call = Call(NO_DEADLINE, NO_DEADLINE, token)
    call.heed_token()
    assert said(call) is None
    token.cancel()
    assert (said(call), call.woken) == ("canceled: the call was canceled", 1)
    late = Call(NO_DEADLINE, NO_DEADLINE, token)
    late.heed_token()
    assert (said(late), late.woken) == ("canceled: the call was canceled", 1)


def test_a_token_is_forgotten_with_the_call() -> None:
    token = CancelToken()
    call = Call(NO_DEADLINE, NO_DEADLINE, token)
    call.heed_token()
    call.finish()
    token.cancel()
    assert (said(call), call.woken) == (None, 0)


def test_a_stream_that_is_closed() -> None:
    call = Call(LONG, LONG, None)
    call.interrupt()
    assert (said(call), call.woken) == ("canceled: the stream was closed", 1)
    call.cancel()
    assert said(call) == "canceled: the stream was closed", "the first reason stays"
