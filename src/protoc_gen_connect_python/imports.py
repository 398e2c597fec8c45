"""What a generated module imports, and under which names."""

from __future__ import annotations

import re
from keyword import iskeyword
from typing import TYPE_CHECKING

from protoc_gen_connect_python.layout import bracketed, from_import, string
from protoc_gen_connect_python.names import Namespace, can_be_imported

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from protoc_gen_connect_python.model import MessageType

__all__ = ["Imports"]

_MODULES = ("importlib", "typing")

_RUNTIME_SYMBOLS = {
    "AsyncClient": "connectrpc.client",
    "IdempotencyLevel": "connectrpc.method",
    "Method": "connectrpc.method",
    "MethodKind": "connectrpc.method",
    "Service": "connectrpc.method",
    "SyncClient": "connectrpc.client",
    "server": "connectrpc",  # whole: what makes applications loads when it is first asked for
}
"""What generated code runs with, and the module that has it."""

_TYPING_SYMBOLS = {
    "ASGIApplication": "connectrpc.server",
    "ASGIImplementation": "connectrpc.server",
    "AsyncClientStream": "connectrpc.server",
    "AsyncGenerator": "collections.abc",
    "AsyncIterator": "collections.abc",
    "AsyncStreamCall": "connectrpc.streams",
    "AsyncStreamInput": "connectrpc.streams",
    "Awaitable": "collections.abc",
    "CancelToken": "connectrpc.client",
    "ClientRequest": "connectrpc.server",
    "ClientStream": "connectrpc.server",
    "ConnectError": "connectrpc.errors",
    "Generator": "collections.abc",
    "HeaderInput": "connectrpc.headers",
    "Iterator": "collections.abc",
    "ServerResponse": "connectrpc.server",
    "ServerStream": "connectrpc.server",
    "ServiceOptions": "connectrpc.server",
    "StreamInput": "connectrpc.streams",
    "StreamOutput": "connectrpc.streams",
    "UnaryOutput": "connectrpc.unary",
    "Unpack": "typing_extensions",
    "WSGIApplication": "connectrpc.server",
    "WSGIImplementation": "connectrpc.server",
    "deprecated": "typing_extensions",  # the one that type checkers know; `connectrpc.gencode` has the one that runs
    "float": "builtins",
}
"""What only annotations name, and the module that has it."""


class Imports:
    """The imports of one generated module.

    ``use``, ``message_class`` and ``message_type`` give what to write where something is meant, and remember it; the
    statements are asked for when everything else is written.

    What has the same name as something that the module defines, if only a method, is imported under an alias: inside a
    class that has a method ``float``, the annotation ``float`` means the method.

    Args:
        module: the module that protoc generates for the same file. The generated one is in the same package.
        defined: the names that the generated module defines, at its top and in its classes.
        relative: whether to import messages relatively.
    """

    def __init__(self, module: str, defined: Iterable[str], *, relative: bool) -> None:
        self._module = module
        self._package = module.split(".")[:-1]
        self._relative = relative
        self._scope = Namespace(defined)
        self._symbols: dict[str, str] = {}
        self._message_modules: dict[str, str] = {}
        self._gencode = self._scope.claim(("gencode", "_gencode"))

    # --- what is used

    @property
    def gencode(self) -> str:
        """The local name of ``connectrpc.gencode``, which every module imports."""
        return self._gencode

    def use(self, symbol: str) -> str:
        """The local name of a part of the runtime, ``typing_extensions`` or the standard library."""
        if symbol not in self._symbols:
            self._symbols[symbol] = self._scope.claim((symbol, f"_{symbol}"))
            if self._is_for_typing(symbol):
                self.use("typing")  # for TYPE_CHECKING
        return self._symbols[symbol]

    def message_class(self, message: MessageType) -> str:
        """The expression for the class of ``message``."""
        expression = self._message_module(message.module)
        for name in message.path:
            expression = f"{expression}.{name}" if _is_plain(name) else f"getattr({expression}, {string(name)})"
        return expression

    def message_type(self, message: MessageType) -> str:
        """The annotation for ``message``: its class, or ``Any`` where type checkers cannot have that.

        They do not follow ``importlib``; protoc's stub is no Python when a message is called like a keyword; and to
        pyright in strict mode a name with a leading underscore is nobody's business outside of its module.
        """
        if self._origin(message.module) is None or not all(_is_plain(name) for name in message.path):
            return f"{self.use('typing')}.Any"
        return self.message_class(message)

    # --- statements

    def before_check(self) -> Iterator[str]:
        """The standard library's modules, and what checks the version of the runtime."""
        modules = [name for name in _MODULES if name in self._symbols]
        yield from _group([f"import {_aliased(name, self._symbols[name])}" for name in modules])
        yield from from_import("connectrpc", [_aliased("gencode", self._gencode)])

    def after_check(self) -> Iterator[str]:
        """Everything else, in groups with an empty line after each."""
        runtime = {name: origin for name, origin in _RUNTIME_SYMBOLS.items() if name in self._symbols}
        yield from _group(self._symbol_imports(runtime))
        yield from _group(self._message_imports())
        yield from _group(self._message_loads())
        yield from _group(self._typing_imports())

    def _symbol_imports(self, origins: dict[str, str], *, indent: str = "") -> Iterator[str]:
        for origin in sorted(set(origins.values())):
            names = [_aliased(name, self._symbols[name]) for name in sorted(origins) if origins[name] == origin]
            yield from from_import(origin, names, indent=indent)

    def _message_imports(self) -> Iterator[str]:
        modules: list[str] = []
        members: dict[str, list[str]] = {}
        for module, local in sorted(self._message_modules.items()):
            name = module.rpartition(".")[2]
            origin = self._origin(module)
            if origin == "":
                modules.append(_aliased(name, local))
            elif origin is not None:
                members.setdefault(origin, []).append(_aliased(name, local))
        yield from (f"import {module}" for module in modules)
        for origin in sorted(members, key=lambda origin: (origin.startswith("."), origin)):
            yield from from_import(origin, members[origin])

    def _message_loads(self) -> Iterator[str]:
        for module, local in sorted(self._message_modules.items()):
            if self._origin(module) is None:
                call = f"{local} = {self._symbols['importlib']}.import_module("
                if self._relative:
                    package, name = self._relative_package(module), module.rpartition(".")[2]
                    dot = "" if package.endswith(".") else "."
                    yield from bracketed(call, [string(f"{package}{dot}{name}"), "__package__"], ")")
                else:
                    yield from bracketed(call, [string(module)], ")")

    def _typing_imports(self) -> Iterator[str]:
        standard: dict[str, str] = {}
        extensions: dict[str, str] = {}
        runtime: dict[str, str] = {}
        for name, origin in _TYPING_SYMBOLS.items():
            if name in self._symbols and self._is_for_typing(name):
                group = runtime if "connectrpc" in origin else extensions if "_" in origin else standard
                group[name] = origin
        lines: list[str] = []
        for group in (standard, extensions, runtime):
            lines += _group(self._symbol_imports(group, indent="    "))
        if lines:
            yield f"if {self._symbols['typing']}.TYPE_CHECKING:"
            yield from lines[:-1]
            if "deprecated" in self._symbols:
                yield "else:"
                yield f"    from connectrpc.gencode import {_aliased('deprecated', self._symbols['deprecated'])}"

    def _is_for_typing(self, symbol: str) -> bool:
        origin = _TYPING_SYMBOLS.get(symbol)
        return origin is not None and (origin != "builtins" or self._symbols[symbol] != symbol)

    # --- modules of messages

    def _message_module(self, module: str) -> str:
        """The local name of the module that protoc generates for some messages."""
        if module not in self._message_modules:
            name = module.rpartition(".")[2]
            if not can_be_imported(name):
                name = _identifier(name)
            whole = f"_{_identifier(module).lstrip('_')}"
            others = {self._module, *self._message_modules} - {module}
            if any(other.rpartition(".")[2] == name for other in others):
                candidates = [whole]
            elif name.startswith("__"):  # which would be a private name inside of a class, and rewritten
                candidates = [f"_{name.lstrip('_')}", whole]
            else:
                candidates = [name, f"_{name.lstrip('_')}", whole]
            self._message_modules[module] = self._scope.claim(candidates)
            if self._origin(module) is None:
                self.use("importlib")
        return self._message_modules[module]

    def _origin(self, module: str) -> str | None:
        """What goes between ``from`` and ``import`` for a module of messages; empty when there is no package.

        None when no import statement can name the module: a part of it is a keyword, or no identifier.
        """
        package, _, name = module.rpartition(".")
        if self._spells_relatively(module):
            if not all(part.isidentifier() for part in self._package):
                return None  # mypy sees no package in such a folder, and so nothing that an import is relative to
            package = self._relative_package(module)
        spelled = [part for part in (*package.split("."), name) if part]
        return package if all(can_be_imported(part) for part in spelled) else None

    def _spells_relatively(self, module: str) -> bool:
        if module.startswith("google.protobuf."):
            return False  # part of the installed protobuf, wherever generated code is
        if self._relative:
            return True
        # Nothing promises a package around the outermost folder, so that is where relative imports end. Below it they
        # have two uses. A folder that is called like a keyword is not named by what is within it. And in the folder
        # that is called like the runtime, pyright looks for an absolute import in the runtime alone.
        outermost = module.split(".")[0]
        return self._package[:1] == [outermost] and (outermost == "connectrpc" or not can_be_imported(module))

    def _relative_package(self, module: str) -> str:
        """The package of ``module`` as seen from here: ``.``, ``.v1`` or ``..other.v1``."""
        package = module.split(".")[:-1]
        shared = 0
        for here, there in zip(self._package, package, strict=False):
            if here != there:
                break
            shared += 1
        return "." * (len(self._package) - shared + 1) + ".".join(package[shared:])


def _aliased(name: str, local: str) -> str:
    return name if name == local else f"{name} as {local}"


def _group(lines: Iterable[str]) -> list[str]:
    """Lines with an empty one after them, or nothing."""
    group = list(lines)
    return [*group, ""] if group else []


def _identifier(text: str) -> str:
    identifier = re.sub(r"[^A-Za-z0-9_]", "_", text)
    return f"_{identifier}" if identifier[0].isdigit() else identifier


def _is_plain(name: str) -> bool:
    return not iskeyword(name) and not name.startswith("_")
