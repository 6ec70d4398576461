"""Values as a compiled pipeline writes them: known when it is compiled, or when the step that takes them starts."""

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType


class Part(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a compiled pipeline; a field not known here is refused."""


class Ref(Part, frozen=True):
    """Either a parameter, or the part at ``path`` of an output of a step."""

    parameter: str | None = None
    step: str | None = None
    output: str | None = None
    path: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        of_step = self.step is not None and self.output is not None and self.parameter is None
        of_pipeline = self.parameter is not None and self.step is None and self.output is None and not self.path
        if of_step == of_pipeline:
            raise ValueError("a ref is {parameter} or {step, output, path}")

    def __str__(self) -> str:
        return (self.parameter or f"{self.step}.{self.output}") + "".join(f"[{part!r}]" for part in self.path)


class AssetRef(Part, frozen=True):
    """A data asset; ``version`` None = the newest when the execution starts."""

    name: str
    version: int | None = None


class Join(Part, frozen=True):
    """A text: the values, as texts, with ``on`` between them. A number or a truth value is written as JSON has it."""

    on: str
    values: "tuple[Value, ...]"


# id: the execution's. pipeline: its name. started_at, now (when the step starts): UTC, ISO 8601.
Variable = Literal["id", "pipeline", "started_at", "now"]


class Value(Part, frozen=True, rename={"items": "list", "entries": "dict"}):
    """Exactly one of: a literal, a reference, an asset, a list of values, a dict of values, a text made of values, a
    fact about the execution."""

    value: Any = UNSET
    ref: Ref | UnsetType = UNSET
    asset: AssetRef | UnsetType = UNSET
    items: "tuple[Value, ...] | UnsetType" = UNSET
    entries: "dict[str, Value] | UnsetType" = UNSET
    join: "Join | UnsetType" = UNSET
    execution: Variable | UnsetType = UNSET

    def __post_init__(self) -> None:
        parts = (self.value, self.ref, self.asset, self.items, self.entries, self.join, self.execution)
        if sum(part is not UNSET for part in parts) != 1:
            raise ValueError("a value is exactly one of value, ref, asset, list, dict, join, execution")

    def leaves(self) -> "list[Value]":
        """This value, or those that a list, dict or text is made of, at any depth."""
        inner: Sequence[Value] = ()
        if isinstance(self.items, tuple):
            inner = self.items
        elif isinstance(self.entries, dict):
            inner = tuple(self.entries.values())
        elif isinstance(self.join, Join):
            inner = self.join.values
        else:
            return [self]
        return [leaf for value in inner for leaf in value.leaves()]


Operator = Literal["eq", "ne", "lt", "le", "gt", "ge", "in", "and", "or", "not"]


class Condition(Part, frozen=True):
    """A comparison of ``left`` and ``right``, or ``and``, ``or``, ``not`` of the conditions in ``of``."""

    op: Operator
    left: Value | None = None
    right: Value | None = None
    of: "tuple[Condition, ...]" = ()

    def __post_init__(self) -> None:
        joins = self.op in ("and", "or", "not")
        sides = self.left is not None and self.right is not None
        if joins == sides or joins != bool(self.of) or (self.op == "not" and len(self.of) != 1):
            raise ValueError(f"{self.op!r} takes {'conditions in `of`' if joins else '`left` and `right`'}")

    def values(self) -> list[Value]:
        """Every value that is compared somewhere in this condition."""
        own = [side for side in (self.left, self.right) if side is not None]
        return own + [value for condition in self.of for value in condition.values()]
