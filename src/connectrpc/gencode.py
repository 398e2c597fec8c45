"""What generated code needs of the runtime while it is being imported, and nothing else."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["GENCODE_VERSION", "deprecated", "require"]

GENCODE_VERSION = 1
"""The version of the contract between generated code and this runtime, raised when it breaks."""

_OLDEST_SUPPORTED = 1


def require(version: int, source: str) -> None:
    """Refuse generated code that this runtime does not understand.

    Args:
        version: the version of the contract that the code was generated for.
        source: the ``.proto`` file, for the message.

    Raises:
        ImportError: the code is too new or too old; one line says what to do.
    """
    if version > GENCODE_VERSION:
        raise ImportError(
            f"the code generated from {source} (contract {version}) is newer than the installed connect-python "
            f"(contract {GENCODE_VERSION}): upgrade connect-python, or generate again with its own plugin"
        )
    if version < _OLDEST_SUPPORTED:
        raise ImportError(
            f"the code generated from {source} (contract {version}) is too old for the installed connect-python "
            f"(contracts {_OLDEST_SUPPORTED} to {GENCODE_VERSION}): generate it again"
        )


if sys.version_info >= (3, 13):
    from warnings import deprecated
else:
    _CO_COROUTINE = 0x80  # of `inspect`, whose import costs more than all the rest

    def deprecated(message: str) -> Callable[[T], T]:
        """Mark a function or a class as deprecated: calling it, or deriving from it, emits a ``DeprecationWarning``.

        Does at run time what ``warnings.deprecated`` does from Python 3.13 on.
        """

        def decorate(target: T) -> T:
            import functools
            import warnings

            if isinstance(target, type):
                original = target.__init__  # type: ignore[misc]

                @functools.wraps(original)
                def __init__(self: object, *args: object, **kwargs: object) -> None:  # noqa: N807
                    if type(self) is target:
                        warnings.warn(message, DeprecationWarning, stacklevel=2)
                    original(self, *args, **kwargs)

                @classmethod  # type: ignore[misc]
                def __init_subclass__(cls: type, **kwargs: object) -> None:  # noqa: N807
                    warnings.warn(message, DeprecationWarning, stacklevel=2)
                    super(target, cls).__init_subclass__(**kwargs)  # type: ignore[arg-type]

                target.__init__ = __init__  # type: ignore[misc]
                target.__init_subclass__ = __init_subclass__  # type: ignore[assignment]
                target.__deprecated__ = message  # type: ignore[attr-defined]
                return target

            call: Callable[..., object]
            if target.__code__.co_flags & _CO_COROUTINE:  # type: ignore[attr-defined]
                # A plain function would be none to await, to mocks and to whoever else looks at it. This one warns when
                # it is first waited for, instead of when it is called.
                async def call(*args: object, **kwargs: object) -> object:
                    warnings.warn(message, DeprecationWarning, stacklevel=2)
                    return await target(*args, **kwargs)  # type: ignore[operator]
            else:

                def call(*args: object, **kwargs: object) -> object:
                    warnings.warn(message, DeprecationWarning, stacklevel=2)
                    return target(*args, **kwargs)  # type: ignore[operator]

            functools.update_wrapper(call, target)  # type: ignore[arg-type]
            call.__deprecated__ = message  # type: ignore[attr-defined]
            return call  # type: ignore[return-value]

        return decorate
