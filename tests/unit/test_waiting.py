"""Waits that can be left."""

from __future__ import annotations

import contextvars
import os
import sys
import threading
import time
from typing import Any

import pytest

from connectrpc.errors import ConnectError, ConnectErrorCode
from connectrpc.transports._waiting import Helper, Waiting, Wakeup

PATIENCE = 5.0


def test_waking() -> None:
    wakeup = Wakeup()
    begun = time.monotonic()
    wakeup.wait(0.02)
    assert time.monotonic() - begun >= 0.02
    for _ in range(3):
        wakeup.wake()
    begun = time.monotonic()
    wakeup.wait(PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2, "it was woken before"
    wakeup.wait(0.02)
    assert time.monotonic() - begun >= 0.02, "once for all wake-ups before"
    threading.Timer(0.02, wakeup.wake).start()
    wakeup.wait()


@pytest.mark.parametrize("timeout", [0.0, -5.0])
def test_no_time_to_wait(timeout: float) -> None:
    Wakeup().wait(timeout)


@pytest.mark.parametrize("timeout", [None, PATIENCE, 1e300, float("inf")])
def test_waking_in_the_midst_of_a_wait(timeout: float | None) -> None:
    """As a signal handler does, or the garbage collector."""

    def wake_at(step: int) -> bool:
        """Whether there is such a step of a wait. It is woken then."""
        wakeup = Wakeup()
        left = step

        def trace(_frame: object, event: str, _: object) -> Any:
            nonlocal left
            if event in ("call", "line"):
                left -= 1
                if not left:
                    wakeup.wake()
            return trace

        timer = threading.Timer(0.1, wakeup.wake)  # for a step that there is not
        timer.start()
        sys.settrace(trace)
        try:
            begun = time.monotonic()
            wakeup.wait(timeout)
            seconds = time.monotonic() - begun
        finally:
            sys.settrace(None)
            timer.cancel()
        if left > 0:
            return False
        assert seconds < 0.05, f"step {step}"
        return True

    def every_step() -> None:
        step = 1
        while wake_at(step):
            step += 1
        steps.append(step)

    steps: list[int] = []
    thread = threading.Thread(target=every_step, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert steps
    assert steps[0] > 2


def test_what_it_gives() -> None:
    waiting = Waiting(lambda: 1, lambda result: pytest.fail("it is wanted"))
    assert waiting.wait(PATIENCE)
    assert waiting.result() == 1


def test_what_it_raises() -> None:
    def fail() -> None:
        raise KeyError("a")

    waiting = Waiting(fail, lambda result: pytest.fail("there is none"))
    assert waiting.wait(PATIENCE)
    with pytest.raises(KeyError):
        waiting.result()


def test_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Helper, "_idle", [])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ConnectError, match="no thread can be started") as caught:
        Waiting(lambda: 1, lambda result: None)
    assert caught.value.code is ConnectErrorCode.RESOURCE_EXHAUSTED


def test_no_thread_is_started_as_the_interpreter_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would never run, and starting it waits for that."""
    monkeypatch.setattr(Helper, "_idle", [])
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    before = set(threading.enumerate())
    with pytest.raises(ConnectError, match="no thread can be started"):
        Helper.start_task(lambda: None)
    assert set(threading.enumerate()) <= before  # those of other tests may end meanwhile


def test_it_sees_the_context_variables_of_who_waits() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("mine")
    waiting = Waiting(variable.get, lambda result: None)
    assert waiting.wait(PATIENCE)
    assert waiting.result() == "mine"


@pytest.mark.parametrize("by", ["time", "wake"])
def test_a_wait_that_is_left(by: str) -> None:
    """What comes later is dropped."""
    go_on, dropped = threading.Event(), threading.Event()
    waiting = Waiting(lambda: go_on.wait(PATIENCE), lambda result: dropped.set())
    if by == "wake":
        threading.Timer(0.01, waiting.wake).start()
    begun = time.monotonic()
    assert not waiting.wait(0.02 if by == "time" else PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2
    waiting.leave()
    assert not dropped.is_set()
    go_on.set()
    assert dropped.wait(PATIENCE)


def test_what_is_done_already_is_dropped_by_who_leaves() -> None:
    dropped: list[int] = []
    waiting = Waiting(lambda: 1, dropped.append)
    assert waiting.wait(PATIENCE)
    waiting.leave()
    assert dropped == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing to fork with")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    """Those that were idle have stayed in the parent, and would never do what they were given."""
    assert Waiting(lambda: 1, lambda result: None).wait(PATIENCE)
    until = time.monotonic() + PATIENCE
    while not Helper._idle:
        assert time.monotonic() < until
        time.sleep(0.001)
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if Waiting(lambda: 1, lambda result: None).wait(PATIENCE) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
