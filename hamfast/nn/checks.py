"""Checks of what layers are made with and called with: what was expected, what was found."""

import copy
import warnings
from functools import cache
from typing import Any

from torch import nn

from hamfast.ops.checks import check_tensor


def check_rows(layer: str, name: str, x: Any, channels: int, rows: int | None = None) -> None:
    """``x`` must be ``[rows, channels]``."""
    check_tensor(layer, name, x)
    if x.dim() != 2 or x.shape[1] != channels or (rows is not None and x.shape[0] != rows):
        raise ValueError(
            f"{layer}: {name}: expected [{'rows' if rows is None else rows}, {channels}], found {list(x.shape)}"
        )


def check_last(layer: str, name: str, x: Any, channels: int) -> None:
    """``x`` must be ``[..., channels]``."""
    check_tensor(layer, name, x)
    if x.shape[-1:] != (channels,):
        raise ValueError(f"{layer}: {name}: expected [..., {channels}], found {list(x.shape)}")


def check_index(layer: str, name: str, index: Any, rows: int) -> None:
    """``index`` must be ``[rows]`` int64."""
    check_tensor(layer, name, index)
    if index.dim() != 1 or index.shape[0] != rows or index.is_floating_point():
        raise ValueError(f"{layer}: {name}: expected [{rows}] int64, found {list(index.shape)} {index.dtype}")


class NamesHamfast:
    """A part of somebody else's model that calls hamfast's ops."""

    _nequip_custom_ops_libs = ("hamfast.nn",)
    """What NequIP imports before it loads a compiled model with such a part."""


class CallsPython(NamesHamfast):
    """A part of somebody else's model whose TorchScript calls hamfast's Python code."""

    def __prepare_scriptable__(self):
        _say_that_python_is_needed()
        return self


@cache
def _say_that_python_is_needed() -> None:
    warnings.warn(
        "hamfast: the TorchScript of an accelerated model runs where Python has imported hamfast.nn; for LAMMPS and "
        "other programs without Python call take_back() of the report of hamfast.accelerate before scripting",
        stacklevel=2,
    )


class ScriptsTheirCode(NamesHamfast):
    """A part of somebody else's model whose TorchScript is their own code: that of the last base
    class."""

    def __prepare_scriptable__(self):
        theirs = copy.copy(self)
        theirs.__class__ = type(self).__bases__[-1]
        return theirs


class NotScripted(nn.Module):
    """A layer that TorchScript cannot read, which it would take a page to say."""

    def __prepare_scriptable__(self):
        raise NotImplementedError(
            f"hamfast: {type(self).__name__} cannot be scripted, as TorchScript does not read hamfast's ops: expected "
            "torch.jit.trace, torch.export or torch.compile, found torch.jit.script"
        )
