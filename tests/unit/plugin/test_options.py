"""The parameters of the plugin."""

from __future__ import annotations

import pytest

from protoc_gen_connect_python.options import Options, OptionsError


@pytest.mark.parametrize(
    ("parameter", "options"),
    [
        ("", Options("both", "both", "absolute")),
        (",,", Options()),
        ("sides=client", Options(sides="client")),
        ("styles=async,imports=relative", Options(styles="async", imports="relative")),
        (" sides = server , styles = sync ,", Options(sides="server", styles="sync")),
        ("sides=client,sides=client", Options(sides="client")),
    ],
)
def test_parse(parameter: str, options: Options) -> None:
    assert Options.parse(parameter) == options


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("side=client", "unknown option 'side'; the options are sides, styles, imports"),
        ("client", "unknown option 'client'; the options are sides, styles, imports"),
        ("=client", "unknown option ''; the options are sides, styles, imports"),
        ("sides=clients", "option sides is one of client, server, both, not 'clients'"),
        ("sides", "option sides is one of client, server, both, not ''"),
        ("styles=sync=async", "option styles is one of sync, async, both, not 'sync=async'"),
        ("sides=client,sides=server", "option sides is given twice, as 'client' and as 'server'"),
    ],
)
def test_what_it_does_not_understand(parameter: str, message: str) -> None:
    with pytest.raises(OptionsError) as raised:
        Options.parse(parameter)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("options", "clients", "servers", "sync", "asynchronous"),
    [
        (Options(), True, True, True, True),
        (Options(sides="client"), True, False, True, True),
        (Options(sides="server"), False, True, True, True),
        (Options(styles="sync"), True, True, True, False),
        (Options(styles="async"), True, True, False, True),
    ],
)
def test_what_they_mean(options: Options, clients: bool, servers: bool, sync: bool, asynchronous: bool) -> None:
    assert (options.clients, options.servers, options.sync, options.asynchronous) == (
        clients,
        servers,
        sync,
        asynchronous,
    )
