"""What generated code meets when it is imported."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from typing import TYPE_CHECKING
from unittest.mock import create_autospec

import pytest

from connectrpc import gencode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


def test_the_version_of_this_runtime_is_fine() -> None:
    gencode.require(gencode.GENCODE_VERSION, "a.proto")


def test_too_new() -> None:
    with pytest.raises(ImportError) as caught:
        gencode.require(gencode.GENCODE_VERSION + 1, "dir/a.proto")
    text = str(caught.value)
    assert "dir/a.proto" in text
    assert "newer" in text
    assert "upgrade connect-python" in text
    assert "\n" not in text


def test_too_old() -> None:
    with pytest.raises(ImportError) as caught:
        gencode.require(0, "dir/a.proto")
    text = str(caught.value)
    assert "dir/a.proto" in text
    assert "too old" in text
    assert "generate it again" in text
    assert "\n" not in text


def test_deprecated_function() -> None:
    @gencode.deprecated("use other()")
    def old(a: int, *, b: int = 2) -> tuple[int, int]:
        """Its docstring."""
        return a, b

    with pytest.warns(DeprecationWarning, match=r"^use other\(\)$") as caught:
        assert old(1, b=3) == (1, 3)
    assert [warning.filename for warning in caught] == [__file__], "it points at the caller"
    assert old.__name__ == "old"
    assert old.__doc__ == "Its docstring."
    assert list(inspect.signature(old).parameters) == ["a", "b"]
    assert vars(old)["__deprecated__"] == "use other()"


def test_deprecated_method() -> None:
    class Client:
        @gencode.deprecated("no more")
        def old(self) -> str:
            return type(self).__name__

    with pytest.warns(DeprecationWarning, match="no more"):
        assert Client().old() == "Client"


def test_deprecated_coroutine_function() -> None:
    class Client:
        @gencode.deprecated("no more")
        async def old(self, a: int) -> int:
            """Its docstring."""
            return a

        @gencode.deprecated("no more")
        def old_stream(self) -> AsyncGenerator[int, None]:
            raise NotImplementedError

    assert inspect.iscoroutinefunction(Client.old)
    assert not inspect.iscoroutinefunction(Client.old_stream)
    assert Client.old.__doc__ == "Its docstring."
    assert list(inspect.signature(Client.old).parameters) == ["self", "a"]
    assert vars(Client.old)["__deprecated__"] == "no more"

    async def main() -> int:
        return await Client().old(5)

    with pytest.warns(DeprecationWarning, match="^no more$") as caught:
        assert asyncio.run(main()) == 5
    assert [warning.filename for warning in caught] == [__file__], "it points at the caller"

    async def mocked() -> int:
        client = create_autospec(Client, instance=True)
        client.old.return_value = 6
        value: int = await client.old(5)
        return value

    assert asyncio.run(mocked()) == 6


def test_deprecated_class() -> None:
    @gencode.deprecated("use Other")
    class Old:
        def __init__(self, value: int) -> None:
            self.value = value

    with pytest.warns(DeprecationWarning, match="^use Other$") as caught:
        made = Old(5)
    assert made.value == 5
    assert isinstance(made, Old)
    assert [warning.filename for warning in caught] == [__file__]
    assert vars(Old)["__deprecated__"] == "use Other"


def test_deriving_from_a_deprecated_class() -> None:
    class Base:
        def __init_subclass__(cls, tag: str = "none") -> None:
            cls.tag = tag

        tag: str

    @gencode.deprecated("use Other")
    class Old(Base):
        def __init__(self, value: int) -> None:
            self.value = value

    with pytest.warns(DeprecationWarning, match="^use Other$") as caught:

        class Derived(Old, tag="mine"):
            pass

    assert [warning.filename for warning in caught] == [__file__]
    assert Derived.tag == "mine"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Derived(6).value == 6, "whoever derived from it has been warned then"


def test_importing_is_no_use() -> None:
    """Marking alone warns of nothing, or every import of generated code would."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        @gencode.deprecated("x")
        def old() -> None: ...

        @gencode.deprecated("x")
        class Old: ...
