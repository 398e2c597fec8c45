"""Clients that were made, and used, before ``os.fork()``: they work on both sides, and neither hurts the other."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import itertools
import logging
import multiprocessing
import os
import select
import signal
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from connectrpc.client import CancelToken
from connectrpc.errors import ConnectError, ConnectErrorCode

from helpers import STREAM_HEAD, Background, echo_all, good_answer
from integration_pb2 import CountRequest, EchoRequest, SumRequest
from integration_pb2_connect import AsyncProbeServiceClient, ProbeServiceClient
from rawhttp import RawServer, chunked, end_of_stream, envelope

if TYPE_CHECKING:
    from collections.abc import Callable

    from rawhttp import Peer
    from servers import Server

pytestmark = [
    pytest.mark.usefixtures("limit"),
    # That is what these tests are about.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

CALLS = 150


class Child:
    """A forked process.

    Args:
        call: what it does; that must give something true.
        leave: how it ends; by default without any clean-up.
    """

    def __init__(self, call: Callable[[], object], leave: Callable[[int], object] = os._exit) -> None:
        self._read, write = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(write)
            return
        status = 1
        try:
            signal.setitimer(signal.ITIMER_REAL, 20)
            assert call()
            status = 0
            if leave is not os._exit:
                leave(0)
        except BaseException as error:
            if not (isinstance(error, SystemExit) and status == 0):
                status = 1
                os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def join(self, within: float = 20.0) -> None:
        """Wait for its end, which must be a good one."""
        said = b""
        try:
            while select.select([self._read], [], [], within)[0] and (part := os.read(self._read, 65536)):
                said += part
            assert not said, said.decode()
        finally:
            os.close(self._read)
            until = time.monotonic() + 1
            pid, status = 0, 0
            while not pid and time.monotonic() < until:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
                time.sleep(0.005)
            if not pid:
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
        assert pid, "the child hangs"
        assert os.waitstatus_to_exitcode(status) == 0


def work(client: ProbeServiceClient, name: str, calls: int = CALLS) -> bool:
    """Calls of all kinds, each answer looked at."""
    for number in range(calls):
        text = f"{name} {number}"
        assert client.echo(EchoRequest(text=text)).request.text == text
        if number % 10 == 0:
            numbers = [message.number for message in client.count(CountRequest(up_to=5))]
            assert numbers == [1, 2, 3, 4, 5]
            assert client.sum([SumRequest(number=number)] * 3).sum == 3 * number
        if number % 7 == 0:
            assert client.echo(EchoRequest(text=text), timeout_seconds=30).request.text == text
    return True


class SpecialManager(urllib3.PoolManager):
    """What a team may have made of it."""

    def __init__(self, team: str, **options: Any) -> None:
        super().__init__(**options)
        self.team = team
        self.calls = 0

    def connection_from_pool_key(self, pool_key: Any, request_context: Any) -> Any:
        self.calls += 1
        return super().connection_from_pool_key(pool_key, request_context)


MANAGERS: dict[str, Callable[[], urllib3.PoolManager | None]] = {
    "our own": lambda: None,
    "a plain one": urllib3.PoolManager,
    "one that blocks": lambda: urllib3.PoolManager(block=True, maxsize=2),
    "one of one pool": lambda: urllib3.PoolManager(num_pools=1),
    "one with limits": lambda: urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=10), retries=3),
    "a special one": lambda: SpecialManager("ours", block=True, maxsize=3),
}


@pytest.fixture(autouse=True)
def _no_log(caplog: pytest.LogCaptureFixture) -> None:
    """urllib3 logs each connection that finds no room in its pool, and pytest writes that to a file. This has a lock of
    its own, of which a child may get a copy that nobody will ever release."""
    caplog.set_level(logging.ERROR, "urllib3.connectionpool")


@pytest.fixture(params=list(MANAGERS.values()), ids=list(MANAGERS))
def client(request: pytest.FixtureRequest, gunicorn_gthread: Server) -> ProbeServiceClient:
    return ProbeServiceClient(gunicorn_gthread.url, request.param())


def test_both_sides_at_once(client: ProbeServiceClient) -> None:
    work(client, "before", 5)
    child = Child(lambda: work(client, "child"))
    work(client, "parent")
    child.join()
    work(client, "after", 5)


def test_used_only_in_the_child(client: ProbeServiceClient) -> None:
    Child(lambda: work(client, "child", 20)).join()


def test_several_children_and_a_grandchild(client: ProbeServiceClient) -> None:
    work(client, "before", 5)

    def in_child() -> bool:
        work(client, "child", 5)
        grandchild = Child(lambda: work(client, "grandchild", 30))
        work(client, "child", 30)
        grandchild.join()
        return True

    children = [Child(in_child) for _ in range(3)]
    work(client, "parent", 60)
    for child in children:
        child.join()


def test_threads_in_the_child(client: ProbeServiceClient) -> None:
    work(client, "before", 3)

    def in_child() -> bool:
        backgrounds = [Background(functools.partial(work, client, name, 20)) for name in "abcdef"]
        return all(background.result() for background in backgrounds)

    child = Child(in_child)
    work(client, "parent", 50)
    child.join()


def all_kinds(client: ProbeServiceClient, name: str, over: threading.Event) -> int:
    """Calls of all kinds, one after the other, until somebody says that it is enough; how many there were."""
    for number in itertools.count(1):
        text = f"{name} {number}"
        assert client.echo(EchoRequest(text=text)).request.text == text
        assert client.echo(EchoRequest(text=text), timeout_seconds=20).request.text == text
        assert client.echo(EchoRequest(text=text), cancel=CancelToken()).request.text == text
        assert client.sum([SumRequest(number=number)] * 3).sum == 3 * number
        assert [message.number for message in client.count(CountRequest(up_to=5))] == [1, 2, 3, 4, 5]
        with client.call_count(CountRequest(up_to=1000), timeout_seconds=20) as stream:
            assert next(stream).number == 1
        with pytest.raises(ConnectError) as raised:
            client.echo(EchoRequest(delay_ms=20), timeout_seconds=0.002)
        assert raised.value.code is ConnectErrorCode.DEADLINE_EXCEEDED
        if over.is_set():
            return number
    raise AssertionError


@pytest.mark.alone
def test_both_sides_under_load(client: ProbeServiceClient) -> None:
    """Threads call while the process forks, again and again, and so do threads in each child, all of them at once.

    They hold locks at the moment of the fork, of which the child gets copies that nobody will ever release.
    """
    over = threading.Event()

    def in_child() -> bool:
        enough = threading.Event()
        backgrounds = [Background(functools.partial(all_kinds, client, name, enough)) for name in ("c", "d")]
        time.sleep(0.1)
        enough.set()
        return all(background.result() for background in backgrounds)

    backgrounds = [Background(functools.partial(all_kinds, client, name, over)) for name in ("a", "b", "c")]
    try:
        for _ in range(4):
            children = []
            for _ in range(3):
                children.append(Child(in_child))
                time.sleep(0.01)
            for child in children:
                child.join()
    finally:
        over.set()
    assert all(background.result() for background in backgrounds)


def call_in_worker(client: ProbeServiceClient, name: str) -> int:
    return os.getpid() if work(client, name, 100) else 0


def test_multiprocessing(client: ProbeServiceClient) -> None:
    """What it forks inherits the client, and leaves in multiprocessing's own way."""
    work(client, "before", 5)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=call_in_worker, args=(client, name)) for name in ("a", "b")]
    for worker in workers:
        worker.start()
    work(client, "parent", 100)
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0
    work(client, "after", 5)


inherited: ProbeServiceClient | None = None


def call_inherited(name: str) -> int:
    assert inherited is not None
    return call_in_worker(inherited, name)


def test_pool_of_processes(client: ProbeServiceClient) -> None:
    global inherited
    inherited = client
    work(client, "before", 5)
    try:
        with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as executor:
            futures = [executor.submit(call_inherited, name) for name in "abcdef"]
            work(client, "parent", 100)
            assert os.getpid() not in {future.result(20) for future in futures}
    finally:
        inherited = None


@pytest.mark.alone
def test_deadlines_on_both_sides(client: ProbeServiceClient) -> None:
    """The thread that watches deadlines is not there any more in the child."""

    def late() -> bool:
        began = time.monotonic()
        with pytest.raises(ConnectError) as raised:
            client.echo(EchoRequest(delay_ms=1000), timeout_seconds=0.2)
        assert raised.value.code is ConnectErrorCode.DEADLINE_EXCEEDED
        return time.monotonic() - began < 0.5

    assert late()
    with client.call_count(CountRequest(up_to=100, delay_ms=20), timeout_seconds=1) as pending:
        assert next(pending).number == 1
        child = Child(late)
        assert late()
        child.join()
        # Its deadline still holds here.
        found = [message.number for message in pending]
        assert found
        error = pending.error()
        assert error is not None
        assert error.code is ConnectErrorCode.DEADLINE_EXCEEDED


@pytest.mark.alone
def test_tokens_on_both_sides(client: ProbeServiceClient) -> None:
    token = CancelToken()

    def canceled() -> bool:
        background = Background(lambda: client.echo(EchoRequest(delay_ms=1000), cancel=token))
        time.sleep(0.1)
        token.cancel()
        with pytest.raises(ConnectError) as raised:
            background.result(within=0.3)
        return raised.value.code is ConnectErrorCode.CANCELED

    work(client, "before", 3)
    Child(canceled).join()
    assert not token.canceled
    assert canceled()


def test_a_token_that_is_cancelled_in_the_child_does_not_end_the_parents_call(client: ProbeServiceClient) -> None:
    token = CancelToken()
    with client.call_count(CountRequest(up_to=20, delay_ms=10), cancel=token) as stream:
        assert next(stream).number == 1

        def cancel() -> bool:
            token.cancel()
            return token.canceled

        Child(cancel).join()
        assert [message.number for message in stream] == list(range(2, 21))
        assert stream.error() is None


LEAVES: dict[str, Callable[[int], object]] = {"at once": os._exit, "with clean-up": lambda status: _exit(status)}


def _exit(status: int) -> None:
    import atexit

    gc.collect()
    atexit._run_exitfuncs()  # what sys.exit would come to, were it not for pytest


@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES.keys())
def test_a_stream_of_the_parents_outlives_the_child(leave: Callable[[int], object]) -> None:
    """The child has copies of the parent's sockets. Closing those is harmless; shutting them down would not be."""
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        while (request := peer.read()) is not None:
            if request.path.endswith("Echo"):
                peer.send(good_answer(request.body))
            else:
                peer.send(STREAM_HEAD + chunked(envelope(b"\x08\x01"), last=False))
                go_on.wait(10)
                peer.send(chunked(envelope(b"\x08\x02"), end_of_stream()))

    with RawServer(script) as server:
        client = ProbeServiceClient(server.url)
        client.echo(EchoRequest())
        with client.call_count(CountRequest(), timeout_seconds=20) as stream:
            assert next(stream).number == 1

            def in_child() -> bool:
                nonlocal client
                text = client.echo(EchoRequest(text="x")).request.text
                stream.close()
                client.close()
                del client
                gc.collect()
                return text == "x"

            Child(in_child, leave).join()
            go_on.set()
            assert [message.number for message in stream] == [2]
            assert stream.error() is None
        client.echo(EchoRequest(text="y"))
        client.close()


def test_the_childs_end_leaves_the_parents_connections_alone() -> None:
    with RawServer(echo_all) as server, ProbeServiceClient(server.url) as client:
        client.echo(EchoRequest())
        assert server.accepted == 1

        def in_child() -> bool:
            client.echo(EchoRequest())
            client.close()
            return True

        Child(in_child, _exit).join()
        client.echo(EchoRequest())
        assert server.accepted == 2  # one of each


def test_the_users_manager_stays_the_users() -> None:
    """What the parent has configured holds in the child too, and the manager itself is not touched there."""
    with RawServer(echo_all) as server:
        manager = SpecialManager("ours", block=True, maxsize=1, headers={"x-team": "ours"})
        client = ProbeServiceClient(server.url, manager)
        client.echo(EchoRequest())
        pools = manager.pools

        def in_child() -> bool:
            client.echo(EchoRequest())
            client.echo(EchoRequest())
            return manager.pools is pools and manager.connection_pool_kw["maxsize"] == 1

        child = Child(in_child)
        client.echo(EchoRequest())
        child.join()
        assert server.accepted == 2


@pytest.mark.parametrize("own", [True, False], ids=["our own", "the user's"])
def test_a_lock_of_the_pools_was_held_at_the_fork(own: bool) -> None:
    """The child drops the pools that it has inherited. It must not need their locks for that."""
    with RawServer(echo_all) as server:
        manager = urllib3.PoolManager()
        mutex = None
        client = ProbeServiceClient(server.url, None if own else manager)
        client.echo(EchoRequest())
        if own:
            for thing in gc.get_objects():
                if isinstance(thing, urllib3.HTTPConnectionPool) and thing.port == server.port:
                    mutex = thing.pool.mutex  # type: ignore[union-attr]
            del thing
        else:
            mutex = manager.connection_from_url(server.url).pool.mutex  # type: ignore[union-attr]
        assert mutex is not None

        def in_child() -> bool:
            nonlocal client
            assert client.echo(EchoRequest(text="x")).request.text == "x"
            client.close()
            del client
            gc.collect()
            return True

        with mutex:
            child = Child(in_child)
        child.join(within=5)
        assert client.echo(EchoRequest(text="y")).request.text == "y"
        client.close()


def test_an_async_client_is_used_anew_in_the_child(gunicorn_gthread: Server) -> None:
    client = AsyncProbeServiceClient(gunicorn_gthread.url)

    async def call(text: str) -> bool:
        return (await client.echo(EchoRequest(text=text), timeout_seconds=5)).request.text == text

    assert asyncio.run(call("parent"))
    child = Child(lambda: asyncio.run(call("child")))
    assert asyncio.run(call("parent"))
    child.join()
    asyncio.run(client.aclose())
