"""Lines of Python, laid out as Black and Ruff lay them out by default. No line ends with a newline.

What none of them could break either (a very long name) stays too long.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Subscripted", "assignment", "bracketed", "definition", "docstring", "from_import", "string", "visible"]

_LINE_LENGTH = 88
_STEP = "    "
_QUOTES_TO_ESCAPE = re.compile(r'\A"|"{3,}|"+\Z')
"""Those in a docstring that would run into the ones around it, or end it."""


class Subscripted(NamedTuple):
    """A parameter whose type has type arguments, such as ``name: Type[A, B]``."""

    head: str
    arguments: Sequence[str]

    def __str__(self) -> str:
        return f"{self.head}[{', '.join(self.arguments)}]"


def visible(text: str) -> str:
    """``text`` on one line of a literal or a comment: what an editor would not show as itself is escaped.

    That includes line breaks, characters that reorder those around them, and backslashes.
    """
    return "".join(_visible(char) for char in text)


def _visible(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def string(text: str) -> str:
    """The literal of ``text``."""
    escaped = visible(text).replace('"', '\\"')
    return f'"{escaped}"'


def docstring(text: str, *, indent: str = "") -> Iterator[str]:
    """The docstring ``text``, which ``inspect.cleandoc`` would leave as it is."""
    escaped = "\n".join(visible(line) for line in text.split("\n"))
    escaped = _QUOTES_TO_ESCAPE.sub(lambda quotes: '\\"' * len(quotes[0]), escaped)
    first, *rest = escaped.split("\n")
    if not rest:
        yield f'{indent}"""{first}"""'
        return
    yield f'{indent}"""{first}'
    yield from (line and indent + line for line in rest)
    yield f'{indent}"""'


def bracketed(
    head: str, items: Sequence[str | Subscripted | Sequence[str]], tail: str, *, indent: str = ""
) -> Iterator[str]:
    """``head``, which ends with a bracket, then ``items`` with commas between them, then ``tail``.

    All on one line; or the items on a line of their own; or one item a line. An item that is a sequence is a tuple.
    """
    inline = ", ".join(str(item) if isinstance(item, str | Subscripted) else _tuple(item) for item in items)
    if _fits(line := f"{indent}{head}{inline}{tail}"):
        yield line
        return
    yield indent + head
    if _fits(line := f"{indent}{_STEP}{inline}"):
        yield line
    else:
        for item in items:
            if isinstance(item, str):
                yield f"{indent}{_STEP}{item},"
            elif isinstance(item, Subscripted):
                yield from bracketed(f"{item.head}[", item.arguments, "],", indent=indent + _STEP)
            elif _fits(line := f"{indent}{_STEP}{_tuple(item)},"):
                yield line
            else:
                yield from bracketed("(", item, "),", indent=indent + _STEP)
    yield indent + tail


def assignment(name: str, value: str) -> Iterator[str]:
    """``name`` = ``value`` at the top of a module."""
    line = f"{name} = {value}"
    if _fits(line) or not _fits(_STEP + value):
        yield line
    else:
        yield from (f"{name} = (", f"{_STEP}{value}", ")")


def _tuple(items: Sequence[str]) -> str:
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def definition(
    head: str, parameters: Sequence[str | Subscripted], returns: Sequence[str], tail: str, *, indent: str = ""
) -> Iterator[str]:
    """The first lines of a function. ``returns`` are the members of a union; ``tail`` starts with the colon."""
    inline = " | ".join(returns)
    if len(returns) > 1 and not _fits(f"{indent}) -> {inline}{tail}"):
        # Too long even below the parameters, which are then broken before it is.
        *lines, _ = bracketed(f"{head}(", parameters, f") -> {'-' * _LINE_LENGTH}", indent=indent)
        yield from lines
        yield f"{indent}) -> ("
        if _fits(line := f"{indent}{_STEP}{inline}"):
            yield line
        else:
            yield f"{indent}{_STEP}{returns[0]}"
            yield from (f"{indent}{_STEP}| {member}" for member in returns[1:])
        yield f"{indent}){tail}"
    else:
        yield from bracketed(f"{head}(", parameters, f") -> {inline}{tail}", indent=indent)


def from_import(origin: str, imported: Sequence[str], *, indent: str = "") -> Iterator[str]:
    """One import statement. A parenthesised one takes a line for each name."""
    line = f"{indent}from {origin} import {', '.join(imported)}"
    if _fits(line):
        yield line
        return
    yield f"{indent}from {origin} import ("
    yield from (f"{indent}{_STEP}{name}," for name in imported)
    yield f"{indent})"


def _fits(line: str) -> bool:
    return len(line) <= _LINE_LENGTH
