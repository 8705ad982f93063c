"""Options and arguments as commands declare them, and calls in which nothing is unusual.

typer takes longer to import than a small guest to boot, and most calls need nothing that it is good
at. So commands declare their parameters in terms of this module. `understood` reads a call that is
plainly right; `rr86.cli.app` makes typer's declarations from the same ones, for everything else:
help, mistakes, rare spellings.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Parameter:
    """What there is to say about a parameter of a command besides its type and default."""

    def __init__(
        self,
        *names: str,
        help: str,
        metavar: str | None = None,
        min: int | None = None,
        parser: Callable[[str], Any] | None = None,
    ) -> None:
        self.names = names
        self.help = help
        self.metavar = metavar
        self.min = min
        self.parser = parser


class Option(Parameter):
    """A parameter with a name, as "--smp", or "--symbols/--no-symbols" for a switch."""


class Argument(Parameter):
    """A parameter that stands by itself."""


class _Unclear(Exception):
    """Somebody else has to look at this call."""


class _Slot:
    """Where a parameter's text goes, and what becomes of it."""

    def __init__(self, parameter: inspect.Parameter) -> None:
        self.name = parameter.name
        self.default = parameter.default
        kind, self.declared = declaration(parameter)
        choices = [each for each in getattr(kind, "__args__", ()) if each is not type(None)]
        if type(None) in getattr(kind, "__args__", ()):
            (kind,) = choices
        self.many = getattr(kind, "__origin__", None) is list
        self.kind = kind.__args__[0] if self.many else kind

    def value(self, text: str) -> Any:
        if text.startswith("-"):
            raise _Unclear
        if self.declared.parser is not None:
            return self.declared.parser(text)
        value = self.kind(text)
        if self.kind is Path and value.exists() and not os.access(value, os.R_OK):
            raise _Unclear
        if self.declared.min is not None and value < self.declared.min:
            raise _Unclear
        return value


def declaration(parameter: inspect.Parameter) -> tuple[Any, Parameter]:
    """Type and declaration of a command's parameter."""
    annotation = parameter.annotation
    (declared,) = annotation.__metadata__
    assert isinstance(declared, Parameter)
    return annotation.__origin__, declared


def understood(command: Callable[..., None], arguments: Sequence[str]) -> dict[str, Any] | None:
    """What to call `command` with; None if typer has to look at the call."""
    try:
        return _Call(command).read(arguments)
    except Exception:
        # Whatever is wrong, typer finds it again and says it as it says such things.
        return None


class _Call:
    def __init__(self, command: Callable[..., None]) -> None:
        slots = [_Slot(each) for each in inspect.signature(command).parameters.values()]
        self.values = {slot.name: slot.default for slot in slots}
        self.waiting = [slot for slot in slots if isinstance(slot.declared, Argument)]
        self.options: dict[str, tuple[_Slot, bool | None]] = {}
        for slot in slots:
            switch = True if slot.kind is bool else None
            for name in slot.declared.names:
                on, _, off = name.partition("/")
                self.options[on] = (slot, switch)
                if off:
                    self.options[off] = (slot, False)
        self.given: set[str] = set()

    def read(self, arguments: Sequence[str]) -> dict[str, Any]:
        rest = iter(arguments)
        for word in rest:
            if not word.startswith("-"):
                slot = self.waiting.pop(0)
                self.put(slot, slot.value(word))
                continue
            name, equals, text = word.partition("=")
            slot, switch = self.options[name]
            if switch is None:
                self.put(slot, slot.value(text if equals else next(rest)))
            elif equals:
                raise _Unclear
            else:
                self.put(slot, switch)
        if any(value is inspect.Parameter.empty for value in self.values.values()):
            raise _Unclear
        return self.values

    def put(self, slot: _Slot, value: Any) -> None:
        if slot.many:
            so_far = self.values[slot.name] if slot.name in self.given else []
            value = [*so_far, value]
        elif slot.name in self.given:
            raise _Unclear
        self.given.add(slot.name)
        self.values[slot.name] = value
