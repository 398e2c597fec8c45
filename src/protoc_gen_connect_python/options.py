"""The parameters of the plugin, as ``--connect_python_opt`` or buf's ``opt`` gives them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Options", "OptionsError"]

_CHOICES = {
    "sides": ("client", "server", "both"),
    "styles": ("sync", "async", "both"),
    "imports": ("absolute", "relative"),
}


class OptionsError(Exception):
    """A parameter that the plugin does not understand; the message is one line, for people."""


@dataclass(frozen=True)
class Options:
    """What to generate.

    Attributes:
        sides: ``"client"``, ``"server"`` or ``"both"``.
        styles: ``"sync"``, ``"async"`` or ``"both"``.
        imports: how messages are imported: ``"absolute"``, as protoc's own code does it, or ``"relative"``.
    """

    sides: str = "both"
    styles: str = "both"
    imports: str = "absolute"

    @property
    def clients(self) -> bool:
        """Whether to generate clients."""
        return self.sides != "server"

    @property
    def servers(self) -> bool:
        """Whether to generate what serves."""
        return self.sides != "client"

    @property
    def sync(self) -> bool:
        """Whether to generate the synchronous flavour."""
        return self.styles != "async"

    @property
    def asynchronous(self) -> bool:
        """Whether to generate the asynchronous flavour."""
        return self.styles != "sync"

    @classmethod
    def parse(cls, parameter: str) -> Options:
        """Read ``name=value`` pairs with commas between them. Empty ones are skipped, as every plugin does.

        Raises:
            OptionsError: an unknown name, a value that the option does not take, or an option given twice.
        """
        values: dict[str, str] = {}
        for pair in parameter.split(","):
            name, equals, value = (part.strip() for part in pair.partition("="))
            if not name and not equals:
                continue
            if name not in _CHOICES:
                raise OptionsError(f"unknown option {name!r}; the options are {', '.join(_CHOICES)}")
            if value not in _CHOICES[name]:
                raise OptionsError(f"option {name} is one of {', '.join(_CHOICES[name])}, not {value!r}")
            if values.setdefault(name, value) != value:
                raise OptionsError(f"option {name} is given twice, as {values[name]!r} and as {value!r}")
        return cls(**values)
