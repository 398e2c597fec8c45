"""``Deadline`` as a handler sees it."""

from __future__ import annotations

import time

import pytest

from connectrpc.deadline import NO_DEADLINE, Deadline
from connectrpc.errors import ConnectError
from harness import code_of


def test_none() -> None:
    for deadline in (NO_DEADLINE, Deadline(None)):
        assert deadline.timeout_ms is None
        assert deadline.remaining() is None
        assert not deadline.expired()
        deadline.check()
        assert repr(deadline) == "<Deadline: none>"


def test_running() -> None:
    deadline = Deadline(60_000)
    assert deadline.timeout_ms == 60_000
    remaining = deadline.remaining()
    assert remaining is not None
    assert 59 < remaining <= 60
    assert not deadline.expired()
    deadline.check()
    assert "of 60000 ms" in repr(deadline)


def test_zero_has_passed() -> None:
    deadline = Deadline(0)
    assert deadline.expired()
    assert deadline.remaining() == 0
    with pytest.raises(ConnectError) as caught:
        deadline.check()
    assert code_of(caught.value) == "deadline_exceeded"


def test_passes_with_time() -> None:
    deadline = Deadline(10)
    assert not deadline.expired()
    time.sleep(0.02)
    assert deadline.expired()
    assert deadline.remaining() == 0, "never below zero"
    assert deadline.timeout_ms == 10


def test_the_wall_clock_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline(1000)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert not deadline.expired()
    monkeypatch.setattr(time, "monotonic", lambda: float("inf"))
    assert deadline.expired()
