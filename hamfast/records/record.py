"""What a record of an op is made of, and the order of an op's arguments that follows from it."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar


@dataclass(frozen=True)
class Operand:
    """A tensor that an op takes, or one that it gives."""

    name: str
    shape: str = ""
    """Its axes; ``a | b`` stands for one of the two. It is int64 where it is an index, else
    real."""
    optional: bool = False
    differentiable: bool = False
    """Has it a gradient and a tangent?"""
    stored: bool = False
    """May it stay in half precision where all arithmetic is float32?"""

    @property
    def schema(self) -> str:
        """How the schema declares it."""
        return f"Tensor{'?' if self.optional else ''} {self.name}"


@dataclass(frozen=True)
class Setting:
    """A number that an op takes, or a list of them."""

    name: str
    type: str
    """As in the schema, ``int``, ``SymInt``, ``bool``, ``float``, ``int[]``, ``SymInt[]``."""
    means: str = ""
    """What it says, in words; or a class of :mod:`hamfast.records.choices` or
    :mod:`hamfast.records.tables`."""
    differentiable: ClassVar[bool] = False
    stored: ClassVar[bool] = False

    @property
    def schema(self) -> str:
        """How the schema declares it."""
        return f"{self.type} {self.name}"


class _Derived:
    """What has cached properties, which are all made at once.

    The lock of one that is made later breaks the graph of ``torch.compile``.
    """

    def __post_init__(self) -> None:
        for name, value in vars(type(self)).items():
            if isinstance(value, cached_property):
                getattr(self, name)


@dataclass(frozen=True)
class Group(_Derived):
    """Arguments that belong together: a named tuple in Python, a struct or an array in C++."""

    name: str
    """What an op's arguments call it."""
    struct: str
    """The struct in C++, or the enum of the names of an array."""
    members: tuple[Any, ...]
    """:class:`Operand` or :class:`Setting`."""
    indexed: bool = False
    """In C++ an array, for tensors that are looped over."""
    index: tuple[str, ...] = ()
    """What the enum of an array calls its elements; by default their names."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the operands, in order."""
        return tuple(member.name for member in self.members)

    @cached_property
    def fields(self) -> Any:
        """The named tuple of its values."""
        return namedtuple(self.struct, self.names)  # type: ignore[misc]

    @cached_property
    def stored(self) -> tuple[str, ...]:
        """Names of the operands that may stay in half precision."""
        return tuple(member.name for member in self.members if member.stored)

    def bit(self, name: str) -> int:
        """The bit of an operand in a set of them."""
        return 1 << self.names.index(name)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.members)

    def named(self, name: str, prefix: str) -> Group:
        """Operands in another role: their gradients (prefix ``grad``) or tangents (``tangent``),
        each of which may lack."""
        made = (replace(member, name=f"{prefix}_{member.name}", optional=True) for member in self.members)
        return Group(name, self.struct, tuple(made), self.indexed, self.index or self.names)


Argument = Operand | Setting | Group


@dataclass(frozen=True)
class Op(_Derived):
    """An op of ``torch.ops.hamfast``: what it takes and gives, in order.

    Derived from it: the schema, the C++ struct of its arguments, :attr:`Arguments`, and how both
    lie flat.
    """

    name: str
    means: str
    """What it computes, and where that is explained."""
    takes: tuple[Argument, ...]
    gives: tuple[Operand, ...]
    triton: str = ""
    """The module of ``hamfast.triton`` that launches it; none for an op that has no kernels of its
    own there."""

    @cached_property
    def Arguments(self) -> Any:
        """Named tuple of the arguments; a group is a named tuple within it."""
        return namedtuple(f"{self.name}_arguments", [argument.name for argument in self.takes])  # type: ignore[misc]

    @cached_property
    def Results(self) -> Any:
        """Named tuple of the results."""
        return namedtuple(f"{self.name}_results", [result.name for result in self.gives])  # type: ignore[misc]

    @cached_property
    def schema(self) -> str:
        """As ``torch.library`` reads it."""
        taken = ", ".join(item.schema for item in self.flat)
        given = ", ".join("Tensor" for _ in self.gives)
        return f"{self.name}({taken}) -> {f'({given})' if len(self.gives) > 1 else given}"

    @cached_property
    def flat(self) -> tuple[Operand | Setting, ...]:
        """The arguments, one by one, in the order of the schema."""
        found: list[Operand | Setting] = []
        for argument in self.takes:
            found += argument.members if isinstance(argument, Group) else [argument]
        return tuple(found)

    @cached_property
    def tensors(self) -> int:
        """How many tensors the op takes. Where they stand before all settings, they are the first
        so many."""
        return sum(isinstance(item, Operand) for item in self.flat)

    @cached_property
    def differentiable(self) -> tuple[int, ...]:
        """Where the operands that have gradients stand among the flat ones."""
        return tuple(n for n, item in enumerate(self.flat) if item.differentiable)

    @cached_property
    def _spans(self) -> tuple[tuple[Any, int, int], ...]:
        """The class of each argument's group or None, and where it lies among the flat ones."""
        spans, begin = [], 0
        for argument in self.takes:
            size = len(argument) if isinstance(argument, Group) else 1
            spans.append((argument.fields if isinstance(argument, Group) else None, begin, begin + size))
            begin += size
        return tuple(spans)

    def read(self, flat: Sequence[Any]) -> Any:
        """:attr:`Arguments` of a flat sequence, as torch calls an op."""
        # A list and _make: this runs several times in every call.
        return self.Arguments._make(
            [flat[begin] if group is None else group._make(flat[begin:end]) for group, begin, end in self._spans]
        )

    def flatten(self, arguments: Any) -> list[Any]:
        """The flat sequence of :attr:`Arguments`, as torch takes it."""
        found: list[Any] = []
        for value, (group, _, _) in zip(arguments, self._spans, strict=True):
            if group is None:
                found.append(value)
            else:
                found += value
        return found

    def by_name(self, **values: Any) -> tuple[Any, ...]:
        """The flat sequence, each value by its own name; optional operands may be left out.

        Raises:
            TypeError: a name that the op does not have, or one that is missing.
        """
        unknown = values.keys() - {item.name for item in self.flat}
        missing = {i.name for i in self.flat if not (isinstance(i, Operand) and i.optional)} - values.keys()
        if unknown or missing:
            raise TypeError(f"{self.name}: unknown arguments: {sorted(unknown)}, missing ones: {sorted(missing)}")
        return tuple(values.get(item.name) for item in self.flat)

    def per_argument(self, **values: Any) -> tuple[Any, ...]:
        """A flat sequence, as ``backward`` returns it: values by argument (a sequence for a group),
        None elsewhere.
        """
        found: list[Any] = []
        for argument, (group, begin, end) in zip(self.takes, self._spans, strict=True):
            value = values.get(argument.name)
            found += [None] * (end - begin) if value is None else [value] if group is None else value
        return tuple(found)
