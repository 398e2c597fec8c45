"""A manager's pools and connections, which tell the guard of a call which socket it is to shut down."""

from __future__ import annotations

import contextlib
import functools
import socket
from typing import TYPE_CHECKING, Any, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, NewConnectionError

from connectrpc.errors import ConnectError
from connectrpc.transports._waiting import Helper
from connectrpc.transports.urllib3 import _stopping
from connectrpc.transports.urllib3._http import HTTPResponse
from connectrpc.transports.urllib3._stopping import calls

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from urllib3.connectionpool import HTTPConnectionPool
    from urllib3.util.ssltransport import SSLTransport

    from connectrpc.deadline import Deadline
    from connectrpc.transports.urllib3._stopping import Guard

__all__ = ["Owned", "Timeouts", "adopt"]

_QUEUE_SECONDS = 0.1  # no thread is in a pool's queue for so long, unless it is the one that asks


def adopt(pool: HTTPConnectionPool) -> None:
    """Have the pool's connections tell which call they serve, and take them back whenever they are given back."""
    if isinstance(pool, _OwnedPool):
        return
    pool.ConnectionCls = type("Owned" + pool.ConnectionCls.__name__, (Owned, pool.ConnectionCls), {})
    # Functions in the pool itself would refer to it, and its connections would not be closed as soon as it is dropped.
    pool.__class__ = type("Owned" + pool.__class__.__name__, (_OwnedPool, pool.__class__), {})


class _OwnedPool:
    """Gives connections that know whom they serve, and takes them back in the midst of anything. Mixed into the pool's
    own class."""

    pool: object

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)  # type: ignore[misc]
        if isinstance(connection, Owned):
            if connection.owner is not None:
                connection.take_over()
            return connection
        connection.close()  # it is from before, and cannot tell
        return cast("HTTPConnectionPool", self)._new_conn()

    def _put_conn(self, conn: Any) -> None:
        mutex = getattr(self.pool, "mutex", None)  # queues of gevent have none, nor has a closed pool a queue
        if mutex is None or not mutex.locked() or _is_let_go(mutex):
            super()._put_conn(conn)  # type: ignore[misc]
            return
        # This very thread is in the queue: the garbage collector has closed a stream that was left lying about, or a
        # generator of urllib3's that reads one.
        try:
            Helper.start_task(functools.partial(_put_back, super()._put_conn, conn))  # type: ignore[misc]
        except ConnectError:  # there is no thread, so the pool has room for one connection less from now on
            if conn is not None:
                conn.close()


def _is_let_go(lock: threading.Lock) -> bool:
    """Whether a lock that is held for moments only is held by another thread, which has let go of it by now."""
    if not lock.acquire(timeout=_QUEUE_SECONDS):
        return False
    lock.release()
    return True


def _put_back(put_connection: Callable[[Any], None], connection: Any) -> None:
    with contextlib.suppress(HTTPError):  # the pool was closed meanwhile, or is full
        put_connection(connection)


class Owned:
    """A connection that knows the guard of the call it serves, if that has one. Mixed into the pool's own class."""

    owner: Guard | None = None
    response_class = HTTPResponse
    _same: socket.socket | None = None
    """While there are handshakes: TLS takes the socket itself away from whoever holds it, and this stops both."""

    def connect(self) -> None:
        connection = cast("Any", self)
        try:
            super().connect()  # type: ignore[misc]
        except TimeoutError as error:  # in a TLS handshake, or by a proxy: urllib3 would take it for one of reading
            raise ConnectTimeoutError(connection, "the connection was not ready in time") from error
        except UnicodeError as error:  # no name that there can be
            raise NameResolutionError(connection.host, connection, cast("Any", error)) from error
        finally:
            self._let_go()
        self._serve(connection.sock)
        if self.owner is not None and self.owner.timeouts is not None:
            connection.sock.settimeout(self.owner.timeouts.sending)

    def request(self, *args: Any, **kwargs: Any) -> None:
        connection = cast("Any", self)
        self._serve(connection.sock)
        if self.owner is not None and self.owner.timeouts is not None and connection.sock is not None:
            connection.timeout = self.owner.timeouts.sending  # not that for connecting, which is done
        super().request(*args, **kwargs)  # type: ignore[misc]

    def take_over(self) -> None:
        """Take the connection from the guard of the call before, which cannot stop anything on it from now on.

        Before anything else: where that call was stopped when it had just been answered, the connection has to be made
        anew, and only the pool can see to its tunnel through a proxy.
        """
        connection = cast("Any", self)
        with _stopping.owners:
            before, self.owner = self.owner, None
        if before is not None and before.stopped is not None and before.stopped is connection.sock:
            connection.close()

    def _serve(self, sock: socket.socket | SSLTransport | None) -> None:
        """Tell the guard of the call, if it has one, which socket it is to stop.

        Raises:
            ConnectError: the call was stopped already.
        """
        guard: Guard | None = getattr(calls, "guard", None)
        if guard is None:
            return
        with _stopping.owners:
            self.owner = guard
            guard.connection = self
            # Kept apart: with `Connection: close` the connection lets go of it before the body is read.
            guard.socket = sock
        guard.check()

    def _new_conn(self) -> socket.socket:
        inherited = super()._new_conn  # type: ignore[misc]
        guarded = getattr(calls, "guard", None) is not None
        if guarded and inherited.__func__ is HTTPConnection._new_conn:
            sock = self._connect_guarded(cast("HTTPConnection", self))
        else:
            sock = inherited()  # such as a proxy's: the connect timeout bounds it
        if guarded and isinstance(self, HTTPSConnection):
            try:
                self._same = sock.dup()
                self._serve(self._same)
            except BaseException:
                sock.close()
                raise
        return sock

    def _let_go(self) -> None:
        same, self._same = self._same, None
        if same is not None:
            # A guard may be about to shut it down, and what would have its number next is another's.
            with _stopping.owners:
                same.close()

    def _connect_guarded(self, connection: HTTPConnection) -> socket.socket:
        """What urllib3 does to connect, but that a guard knows the socket before it waits for it."""
        host = connection._dns_host.strip("[]")  # with the dot at its end, by which a name is looked up as it stands
        try:
            # None of IPv6 where the system has none, or the user wants none.
            family = urllib3.util.connection.allowed_gai_family()
            addresses = socket.getaddrinfo(host, connection.port, family, socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise NameResolutionError(connection.host, connection, error) from error
        failure: Exception = OSError("the name has no address")
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            try:
                for option in connection.socket_options or ():
                    sock.setsockopt(*option)
                if connection.timeout is None or isinstance(connection.timeout, int | float):
                    sock.settimeout(connection.timeout)
                if connection.source_address:
                    sock.bind(connection.source_address)
                self._serve(sock)
                sock.connect(address)
                return sock
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(connection, f"connecting to {connection.host} timed out") from failure
        raise NewConnectionError(connection, f"no connection: {failure}") from failure


class Timeouts(urllib3.Timeout):
    """The user's own timeouts, with connecting bounded by a limit of the client's and by the deadline."""

    def __init__(self, own: Any, connect: float | None, deadline: Deadline) -> None:
        if not isinstance(own, urllib3.Timeout):
            own = urllib3.Timeout(own)
        super().__init__(connect=own._connect if connect is None else connect, read=own._read, total=own.total)
        self._own = own
        self._connect_limit = connect
        self._deadline = deadline

    @property
    def sending(self) -> float | None:
        """How long sending may take, for which urllib3 knows no other limit than that for connecting: the user's."""
        return urllib3.Timeout.resolve_default_timeout(self._own.connect_timeout)

    def clone(self) -> Timeouts:
        return Timeouts(self._own, self._connect_limit, self._deadline)

    @property
    def connect_timeout(self) -> Any:
        connect = super().connect_timeout
        left = self._deadline.remaining()
        if left is None:
            return connect
        left = max(left, 0.001)  # zero would mean not to block at all
        return min(left, connect) if isinstance(connect, int | float) else left
