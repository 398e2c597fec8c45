"""Lines of Python: literals that say what was meant, and brackets where Ruff would break them."""

from __future__ import annotations

import ast
import inspect
import random

import pytest

from protoc_gen_connect_python import layout

TEXTS = [
    "plain",
    'a "quoted" word',
    '"quoted"',
    '"',
    '""',
    '"""',
    '""""""" and """" and ""',
    "a backslash \\",
    'both \\"',
    "\\n is no line break, and \\x00 \\N{BULLET} no characters",
    "Grüße, 世界 👋",
    "override \u202e, zero\u200bwidth, separators \u2028\u2029, \x0c, \x1b[31m, \x00, \x85, \ufeff",
    "two\nlines",
    'two\n"""\nlines"',
    "first\n\n    indented\nlast \\",
]


def parsed_docstring(text: str, indent: str) -> str | None:
    head = f"class A:\n{indent}def a(self):\n" if indent else ""
    module = ast.parse(head + "\n".join(layout.docstring(text, indent=2 * indent)))
    node = module.body[0].body[0] if indent else module  # type: ignore[attr-defined]
    return ast.get_docstring(node)


@pytest.mark.parametrize("indent", ["", "    "])
@pytest.mark.parametrize("text", TEXTS)
def test_docstrings_say_what_was_meant(text: str, indent: str) -> None:
    assert parsed_docstring(text, indent) == inspect.cleandoc(text)


def test_docstrings_of_anything() -> None:
    choose = random.Random(5)
    for _ in range(2000):
        text = "".join(choose.choices("\"\\\n ax'{}\u202e\x00é", k=choose.randrange(1, 12)))
        text = inspect.cleandoc(text.strip())
        assert parsed_docstring(text, "    ") == text, repr(text)


@pytest.mark.parametrize("text", TEXTS)
def test_strings(text: str) -> None:
    assert ast.literal_eval(layout.string(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_what_an_editor_would_not_show_is_visible(text: str) -> None:
    assert layout.visible(text).isprintable()
    assert all(line.isprintable() for line in layout.docstring(text))


def lines(*texts: str) -> str:
    return "\n".join(texts)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["a", "b"], "x = call(a, b)"),
        ([], "x = call()"),
        (["a" * 40, "b" * 36], f"x = call({'a' * 40}, {'b' * 36})"),  # 88 columns
        (["a" * 40, "b" * 37], lines("x = call(", f"    {'a' * 40}, {'b' * 37}", ")")),
        (["a" * 40, "b" * 42], lines("x = call(", f"    {'a' * 40}, {'b' * 42}", ")")),
        (["a" * 40, "b" * 43], lines("x = call(", f"    {'a' * 40},", f"    {'b' * 43},", ")")),
        (["a", []], "x = call(a, ())"),
        (["a", ["b"]], "x = call(a, (b,))"),
        (["a" * 60, ["b" * 30]], lines("x = call(", f"    {'a' * 60},", f"    ({'b' * 30},),", ")")),
        (
            ["a", ["b" * 40, "c" * 40]],
            lines("x = call(", "    a,", "    (", f"        {'b' * 40},", f"        {'c' * 40},", "    ),", ")"),
        ),
    ],
)
def test_bracketed(items: list[str | list[str]], expected: str) -> None:
    assert lines(*layout.bracketed("x = call(", items, ")")) == expected


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        (["A"], "def f(self, req: R) -> A: ..."),
        (["A", "B"], "def f(self, req: R) -> A | B: ..."),
        (["A" * 60, "B"], lines("def f(", "    self, req: R", f") -> {'A' * 60} | B: ...")),
        (
            ["A" * 38, "B" * 41],
            lines("def f(", "    self, req: R", ") -> (", f"    {'A' * 38} | {'B' * 41}", "): ..."),
        ),
        (
            ["A" * 38, "B" * 44],
            lines("def f(", "    self, req: R", ") -> (", f"    {'A' * 38}", f"    | {'B' * 44}", "): ..."),
        ),
    ],
)
def test_definition(returns: list[str], expected: str) -> None:
    assert lines(*layout.definition("def f", ["self", "req: R"], returns, ": ...")) == expected


def test_from_import() -> None:
    assert lines(*layout.from_import("a", ["b", "c as d"])) == "from a import b, c as d"
    assert lines(*layout.from_import("a" * 70, ["b", "c"])) == lines(f"from {'a' * 70} import b, c")
    assert lines(*layout.from_import("a" * 80, ["b", "c"])) == lines(
        f"from {'a' * 80} import (", "    b,", "    c,", ")"
    )


def test_assignment() -> None:
    assert lines(*layout.assignment("A", "b")) == "A = b"
    assert lines(*layout.assignment("A" * 80, "b" * 20)) == lines(f"{'A' * 80} = (", f"    {'b' * 20}", ")")
    assert lines(*layout.assignment("A", "b" * 90)) == f"A = {'b' * 90}"  # which parentheses would not shorten
