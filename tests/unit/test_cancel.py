"""``CancelToken``: what callers do with it, and what transports rely on."""

from __future__ import annotations

import threading

from connectrpc.cancel import CancelToken


def test_starts_uncanceled_and_stays_canceled() -> None:
    token = CancelToken()
    assert not token.canceled
    token.cancel()
    assert token.canceled
    token.cancel()
    assert token.canceled


def test_tells_every_call_once() -> None:
    token, told = CancelToken(), list[str]()
    token.on_cancel("a", lambda: told.append("a"))
    token.on_cancel("b", lambda: told.append("b"))
    assert told == []
    token.cancel()
    token.cancel()
    assert sorted(told) == ["a", "b"]


def test_a_call_that_is_over_is_not_told() -> None:
    token, told = CancelToken(), list[str]()
    token.on_cancel("a", lambda: told.append("a"))
    token.on_cancel("b", lambda: told.append("b"))
    token.forget("a")
    token.forget("a")
    token.forget("never known")
    token.cancel()
    assert told == ["b"]


def test_told_at_once_when_it_is_too_late() -> None:
    token, told = CancelToken(), list[str]()
    token.cancel()
    token.on_cancel("a", lambda: told.append("a"))
    assert told == ["a"]


def test_a_call_that_fails_inside_the_callback_can_forget_itself() -> None:
    token, told = CancelToken(), list[bool]()

    def callback() -> None:
        token.forget("a")
        told.append(token.canceled)

    token.on_cancel("a", callback)
    token.cancel()
    assert told == [True]


def test_threads_that_race_are_all_told() -> None:
    """Whoever registers while another thread cancels is told, whichever comes first."""
    for _ in range(50):
        token, told = CancelToken(), list[int]()
        barrier = threading.Barrier(3)

        def register(
            start: int, token: CancelToken = token, told: list[int] = told, barrier: threading.Barrier = barrier
        ) -> None:
            barrier.wait()
            for key in range(start, start + 20):
                token.on_cancel(key, lambda key=key: told.append(key))  # type: ignore[misc]

        threads = [threading.Thread(target=register, args=(start,)) for start in (0, 100)]
        for thread in threads:
            thread.start()
        barrier.wait()
        token.cancel()
        for thread in threads:
            thread.join()
        assert sorted(told) == [*range(20), *range(100, 120)]
