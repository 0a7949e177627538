"""Writes the records as C++: ``python -m hamfast.records.write``; with ``--check`` it only says
whether they are stale.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from hamfast.records import tables
from hamfast.records.choices import CHOICES, Choices
from hamfast.records.ops import OPS
from hamfast.records.record import Argument, Group, Op, Operand, Setting
from hamfast.records.tables import TABLES

ROOT = Path(__file__).parents[2]
KERNEL_RECORDS = ROOT / "kernels" / "records.cuh"
OP_RECORDS = ROOT / "csrc" / "common" / "op_records.h"

_COLUMNS = 100
_TYPES = {
    "int": "int64_t",
    "SymInt": "int64_t",
    "bool": "bool",
    "float": "double",
    "int[]": "std::vector<int64_t>",
    "SymInt[]": "std::vector<int64_t>",
}
_NOTE = "Written by `python -m hamfast.records.write` from hamfast/records: change it there."


def kernel_records() -> str:
    """``kernels/records.cuh``: choices as enums, rows of tables as structs."""
    lines = _comment(f"Choices and rows of tables that Python and the kernels share. {_NOTE}")
    lines += ["#pragma once", "", "#include <cstdint>", "", "namespace hamfast {", ""]
    for choice in CHOICES:
        lines += [*_choice(choice), ""]
    for row in TABLES:
        lines += [*_row(row), ""]
    return "\n".join([*lines, "}  // namespace hamfast", ""])


def op_records() -> str:
    """``csrc/common/op_records.h``: schemas, and the arguments of each op as a struct."""
    lines = _comment(
        "The ops: their schemas; the arguments of each as a struct; and a function `<op>_boxed`, which takes them in the "
        f"order of the schema and calls run(struct). {_NOTE}"
    )
    lines += ["#pragma once", "", "#include <torch/csrc/stable/tensor.h>", ""]
    lines += [
        "#include <array>",
        "#include <optional>",
        "#include <utility>",
        "#include <vector>",
        "",
        '#include "records.cuh"',
        "",
    ]
    lines += ["namespace hamfast {", "", "using torch::stable::Tensor;", "using Optional = std::optional<Tensor>;", ""]
    written: set[str] = set()
    for op in OPS:
        for argument in op.takes:
            if isinstance(argument, Group) and argument.struct not in written:
                written.add(argument.struct)
                lines += [*_group(argument), ""]
        lines += [*_op(op), ""]
    lines += ["constexpr const char* kSchemas[] = {"]
    for op in OPS:
        pieces = textwrap.wrap(op.schema, _COLUMNS - 8, break_long_words=False)
        quoted = [f'    "{piece} "' for piece in pieces[:-1]] + [f'    "{pieces[-1]}",']
        lines += quoted
    return "\n".join([*lines, "};", "", "}  // namespace hamfast", ""])


def _comment(text: str, indent: int = 0) -> list[str]:
    width = _COLUMNS - 3 - indent
    return [" " * indent + "// " + line for line in textwrap.wrap(" ".join(text.replace("``", "").split()), width)]


def _choice(choice: type[Choices]) -> list[str]:
    prefix = f"{choice.prefix}_" if choice.prefix else ""
    scope = "enum" if choice.prefix else "enum class"
    lines = _comment(choice.__doc__ or "")
    lines += [f"{scope} {choice.__name__} : int64_t {{"]
    lines += [f"  {prefix}{name} = {value}," for name, value in choice.numbers().items()]
    return [*lines, "};"]


def _row(row: type) -> list[str]:
    fields = row._fields  # type: ignore[attr-defined]
    notes = _field_notes(row.__name__)
    lines = [*_comment(row.__doc__ or ""), f"struct {row.__name__} {{"]
    waiting: list[str] = []
    for name in fields:
        waiting.append(name)
        if name in notes or name == fields[-1]:
            lines += _comment(notes.get(name, ""), 2)
            lines.append(f"  int64_t {', '.join(waiting)};")
            waiting = []
    return [*lines, "};", f"static_assert(sizeof({row.__name__}) == {len(fields)} * sizeof(int64_t));"]


def _field_notes(name: str) -> dict[str, str]:
    """The docstrings of a class's fields: of the last field before each."""
    [found] = [
        node
        for node in ast.parse(inspect.getsource(tables)).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    notes: dict[str, str] = {}
    before = ""
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            before = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and before:
            notes[before] = str(node.value.value)
    return notes


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _type(argument: Operand | Setting) -> str:
    if isinstance(argument, Setting):
        return _TYPES[argument.type]
    return "Optional" if argument.optional else "Tensor"


def _member(argument: Argument) -> str:
    """How the struct of an op's arguments declares it."""
    if isinstance(argument, Group):
        return f"std::array<Optional, {len(argument)}>" if argument.indexed else argument.struct
    return _type(argument)


def _notes(members: tuple[Argument, ...], indent: int) -> Iterator[str]:
    for member in members:
        note = ""
        if isinstance(member, Operand) and member.shape:
            note = f"  // [{member.shape}]"
        elif isinstance(member, Setting) and member.means:
            note = f"  // {member.means}"
        yield f"{' ' * indent}{_member(member)} {member.name};{note}"


def _group(group: Group) -> list[str]:
    if group.indexed and any(group.struct == choice.__name__ for choice in CHOICES):
        return []  # kernels/records.cuh has its enum
    if group.indexed:
        names = ", ".join([*(group.index or group.names), "count"])
        return [f"struct {group.struct} {{", *textwrap.wrap(f"enum : int {{ {names} }};", _COLUMNS, initial_indent="  ", subsequent_indent="    "), "};"]  # fmt: skip
    return [f"struct {group.struct} {{", *_notes(group.members, 2), "};"]


def _moved(argument: Operand | Setting) -> str:
    """A parameter on its way into the struct: what is more than a number is not copied."""
    is_number = isinstance(argument, Setting) and not argument.type.endswith("[]")
    return argument.name if is_number else f"std::move({argument.name})"


def _op(op: Op) -> list[str]:
    name = _camel(op.name)
    lines = [*_comment(f"{op.name}: {op.means}"), f"struct {name}Arguments {{", *_notes(op.takes, 2), "};"]
    parameters = ", ".join(f"{_type(item)} {item.name}" for item in op.flat)
    values = ", ".join(
        f"{{{', '.join(map(_moved, argument))}}}" if isinstance(argument, Group) else _moved(argument)
        for argument in op.takes
    )
    lines += ["template <auto run>"]
    lines += textwrap.wrap(f"auto {op.name}_boxed({parameters}) {{", _COLUMNS, subsequent_indent="    ")
    lines += textwrap.wrap(f"return run({name}Arguments{{{values}}});", _COLUMNS, initial_indent="  ", subsequent_indent="    ")  # fmt: skip
    return [*lines, "}"]


def main() -> None:
    """The command."""
    stale = []
    for path, text in ((KERNEL_RECORDS, kernel_records()), (OP_RECORDS, op_records())):
        if path.exists() and _bare(path.read_text()) == _bare(text):
            continue
        stale.append(str(path.relative_to(ROOT)))
        if "--check" not in sys.argv:
            path.write_text(text)
    if stale and "--check" in sys.argv:
        sys.exit(f"{', '.join(stale)} differ from hamfast/records; run `python -m hamfast.records.write`")


def _bare(text: str) -> str:
    """Without what a formatter may change."""
    return re.sub(r"[\s/]+|\"\s*\"", "", text)


if __name__ == "__main__":
    main()
