"""The records of the ops: what the library and the C++ headers have is what they say."""

import subprocess
import sys

import pytest
import torch
from kit import assert_close

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.records import choices, tables
from hamfast.records.ops import EDGE_EINSUM, GRAPH_ATTENTION, OPS, SPARSE_MAP
from hamfast.records.record import Operand


def test_the_headers_are_what_the_records_say():
    done = subprocess.run([sys.executable, "-m", "hamfast.records.write", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_torch_has_the_op_as_it_is_recorded(op):
    """Names, types and order."""
    schema = getattr(torch.ops.hamfast, op.name).default._schema
    assert [argument.name for argument in schema.arguments] == [item.name for item in op.flat]
    for argument, item in zip(schema.arguments, op.flat, strict=True):
        is_tensor = isinstance(item, Operand)
        assert ("Tensor" in str(argument.type)) == is_tensor
        assert (str(argument.type) == "Optional[Tensor]") == (is_tensor and item.optional)
    assert len(schema.returns) == len(op.gives)
    assert op.tensors == sum(isinstance(item, Operand) for item in op.flat)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_flat_and_named_arguments_are_each_other(op):
    flat = list(range(len(op.flat)))
    named = op.read(flat)
    assert op.flatten(named) == flat
    assert list(op.by_name(**{item.name: n for n, item in enumerate(op.flat)})) == flat
    gradients = op.per_argument(**{argument.name: getattr(named, argument.name) for argument in op.takes})
    assert list(gradients) == flat
    assert op.per_argument() == (None,) * len(flat)


def test_wrong_names_get_a_sentence():
    with pytest.raises(TypeError, match=r"edge_einsum: unknown arguments: \['d'\], missing ones: .*'shape'"):
        EDGE_EINSUM.by_name(a=1, d=2)
    assert GRAPH_ATTENTION.takes[1].bit("key_sender") == 1 << 4


def test_an_op_by_name():
    """A matrix with one entry in its second row."""
    x = torch.tensor([[2.0, 3.0]])
    rows = {"ptr": torch.tensor([0, 0, 1]), "column": torch.tensor([1]), "value": torch.tensor([5.0])}
    given = rows | {f"transposed_{name}": t for name, t in rows.items()}
    assert_close(torch.ops.hamfast.sparse_map(*SPARSE_MAP.by_name(x=x, **given)), torch.tensor([[0.0, 15.0]]))


def test_choices_and_columns_have_one_number_each():
    for choice in choices.CHOICES:
        values = [value for value in vars(choice).values() if isinstance(value, int)]
        assert len(set(values)) == len(values) == len(choice.names())
    for row in tables.TABLES:
        assert len(set(row._fields)) == len(row._fields)
