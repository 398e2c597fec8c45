"""Python names for what a ``.proto`` declares. Pure functions of strings: nothing here knows a descriptor.

One rule runs through all of it: names are given in file order and whoever comes first keeps the name, so appending
an RPC or a service never renames anything that was there before. ``docs/generated-code.md`` is the users' side of this.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Namespace",
    "ServiceNames",
    "can_be_imported",
    "method_names",
    "module_name",
    "service_names",
    "snake_case",
]

_CLIENT_ATTRIBUTES = frozenset({"aclose", "base_url", "close"})
"""What a client has beside its RPCs. Frozen: to add to it would rename RPCs in code that people have."""

_LOW_LEVEL_PREFIX = "call_"

_WORD = re.compile(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*|[0-9]+")
"""One word of a CamelCase or snake_case name: ``HTTP``, ``Get``, ``v1``. A number belongs to the word before it."""


class Namespace:
    """Names that have been given in one Python scope."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def claim(self, candidates: Iterable[str], *, prefixes: Sequence[str] = ("",)) -> str:
        """Take the first of ``candidates`` that is free with each of ``prefixes`` in front of it.

        When none is free, the last gets trailing underscores until it is.
        """
        name = ""
        for name in candidates:
            if self._take(name, prefixes):
                return name
        while not self._take(name := f"{name}_", prefixes):
            pass
        return name

    def _take(self, name: str, prefixes: Sequence[str]) -> bool:
        names = {prefix + name for prefix in prefixes}
        if not self._taken.isdisjoint(names):
            return False
        self._taken |= names
        return True


def module_name(proto_path: str) -> str:
    """The module that protoc's Python generator writes for a ``.proto`` file: ``a/b-c.proto`` is ``a.b_c_pb2``.

    The rule is ``ModuleName`` of protoc's ``python/helpers.cc``; a dot inside a file name makes a folder there too.
    """
    stem = proto_path
    for suffix in (".protodevel", ".proto"):
        if stem.endswith(suffix):
            stem = stem[: -len(suffix)]
            break
    return stem.replace("-", "_").replace("/", ".") + "_pb2"


def can_be_imported(module: str) -> bool:
    """Whether an import statement can name ``module``, or only ``importlib`` can."""
    return all(
        # Python normalises the identifiers in a source file; what is on the disk stays as it is.
        part.isidentifier() and not keyword.iskeyword(part) and unicodedata.normalize("NFKC", part) == part
        for part in module.split(".")
    )


def snake_case(name: str) -> str:
    """``GetHTTPResponse`` as ``get_http_response``. Underscores at both ends stay."""
    core = name.strip("_")
    if not core:
        return name
    before, _, after = name.partition(core)
    return before + "_".join(_WORD.findall(core)).lower() + after


def _public(name: str, prefix: str) -> str:
    """``name`` with its leading underscores moved to its end.

    In front they would make it private to linters, and inside a class Python itself would rewrite it. ``prefix`` goes
    in front when what is left is no identifier: ``_1`` and ``__`` are names in a ``.proto``.
    """
    stem = name.lstrip("_")
    moved = stem + "_" * (len(name) - len(stem))
    return moved if stem and not stem[0].isdigit() else prefix + moved


def method_names(rpcs: Iterable[str]) -> list[str]:
    """The Python names of a service's RPCs, from their names in the ``.proto``, in file order.

    The name is ``snake_case``; when an earlier RPC has that one, the ``.proto``'s own spelling; a trailing underscore
    keeps it off keywords, off what every client has, and off the low-level ``call_`` methods.
    """
    scope = Namespace()
    return [
        scope.claim(
            (_method_name(snake_case(rpc)), _method_name(rpc)),
            prefixes=("", _LOW_LEVEL_PREFIX),
        )
        for rpc in rpcs
    ]


def _method_name(name: str) -> str:
    name = _public(name, "rpc_")
    if keyword.iskeyword(name) or name in _CLIENT_ATTRIBUTES or name.startswith(_LOW_LEVEL_PREFIX):
        return f"{name}_"
    return name


@dataclass(frozen=True)
class ServiceNames:
    """The names that a service has in its generated module.

    Attributes:
        path_prefix: the constant with the service's path.
        client: the synchronous client.
        async_client: the asynchronous client.
        protocol: what implementations follow.
        async_protocol: what asynchronous implementations follow.
        wsgi: the function that makes a WSGI application.
        asgi: the function that makes an ASGI application.
        constant: the private constant that describes the service.
        methods: the names of the RPCs' methods, in file order.
        method_constants: the private constants that describe the RPCs, in file order.
    """

    path_prefix: str
    client: str
    async_client: str
    protocol: str
    async_protocol: str
    wsgi: str
    asgi: str
    constant: str
    methods: tuple[str, ...] = ()
    method_constants: tuple[str, ...] = ()

    def top_level(self) -> tuple[str, ...]:
        """The names at the top of the module, but for those that depend on the RPCs."""
        return (
            self.path_prefix,
            self.client,
            self.async_client,
            self.protocol,
            self.async_protocol,
            self.wsgi,
            self.asgi,
            self.constant,
        )


def service_names(services: Iterable[tuple[str, Sequence[str]]]) -> list[ServiceNames]:
    """The names of a file's services: from their names in the ``.proto`` with those of their RPCs, in file order.

    They do not depend on what is generated: a module without clients has the same names in it as one with both sides.
    """
    services = list(services)
    scope = Namespace()
    claimed = [_claim_top_level(scope, _public(service, "Service")) for service, _ in services]
    # `Foo.BarBaz` and `FooBar.Baz` want the same constant; what all services need comes before what any RPC needs.
    named: list[ServiceNames] = []
    for names, (_, rpcs) in zip(claimed, services, strict=True):
        methods = method_names(rpcs)
        constants = [scope.claim((f"{names.constant}_{method.upper()}",)) for method in methods]
        named.append(replace(names, methods=tuple(methods), method_constants=tuple(constants)))
    return named


def _claim_top_level(scope: Namespace, service: str) -> ServiceNames:
    snake = snake_case(service)
    return ServiceNames(
        path_prefix=scope.claim((f"{snake.upper()}_PATH_PREFIX", f"{service}_PATH_PREFIX")),
        client=scope.claim((f"{service}Client",)),
        async_client=scope.claim((f"Async{service}Client",)),
        protocol=scope.claim((f"{service}Protocol",)),
        async_protocol=scope.claim((f"Async{service}Protocol",)),
        wsgi=scope.claim((f"wsgi_{snake}", f"wsgi_{service}")),
        asgi=scope.claim((f"asgi_{snake}", f"asgi_{service}")),
        constant=scope.claim((f"_{snake.upper()}",)),
    )
