"""Options as fields of a dataclass: documented, and validated all at once.

@dataclass(frozen=True)
class TrainConfig(Options):
    num_epochs: int = option(5, "passes over the training messages", AT_LEAST_1)

The command line is made from the same fields (see `command_line.py`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, field, fields
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


class Range(NamedTuple):
    """Numbers that an option may have."""

    says: str
    holds: Callable[[Any], bool]


AT_LEAST_1 = Range("at least 1", lambda value: value >= 1)
AT_LEAST_0 = Range("at least 0", lambda value: 0 <= value < math.inf)
POSITIVE = Range("above 0, and finite", lambda value: 0 < value < math.inf)
FRACTION = Range("at least 0 and below 1", lambda value: 0 <= value < 1)
SEED = Range("between 0 and 2**32 - 1", lambda value: 0 <= value < 2**32)


def option(default: Any, help: str, allowed: Range | None = None, group: str = "training") -> Any:
    """A field with its help text; `allowed` bounds a number, and None is always allowed where the
    field's type names it. `group` heads it in the command's help."""
    return field(default=default, metadata={"help": help, "allowed": allowed, "group": group})


def parts_of(annotation: Any) -> tuple[list[Any], list[type]]:
    """The values and the classes that a field's type names: a, b and int, of
    `Literal["a", "b"] | int`."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    choices = [value for part in parts if get_origin(part) is Literal for value in get_args(part)]
    return choices, [part for part in parts if isinstance(part, type)]


class Options:
    """A frozen dataclass of options. Raises ``ValueError`` that names every wrong one."""

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise ValueError("; ".join(problems) + ".")

    def problems(self) -> list[str]:
        """What is wrong, an option each; subclasses add what is wrong between options."""
        annotations = get_type_hints(type(self))
        found = [self._problem_of(entry, annotations[entry.name]) for entry in fields(self)]
        return list(filter(None, found))

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """The options of a command that gives these values, but for defaults."""
        words = []
        for entry in fields(self):
            value, name = values.get(entry.name, entry.default), entry.name.replace("_", "-")
            if value != entry.default and isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            elif value != entry.default:
                words += [f"--{name}", str(value)]
        return words

    def _problem_of(self, entry: Field, annotation: Any) -> str | None:
        value, (choices, kinds) = getattr(self, entry.name), parts_of(annotation)
        if value in choices or (value is None and type(None) in kinds):
            return None
        kinds = (*kinds, *([int] if float in kinds else []))  # a whole number is a number too
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        allowed = entry.metadata.get("allowed")
        if fits and (allowed is None or allowed.holds(value)):
            return None
        expected = list(map(str, choices))
        if allowed is not None:
            expected.append(allowed.says)
        elif not choices:
            expected.append("a " + kinds[0].__name__)
        return f"{entry.name}={value!r} must be {' or '.join(expected)}"
