"""hamfast under e3nn's own tensor products and PyG's attention layers.

A model's code and its ``state_dict`` stay as they are.
e3nn asks a list of code providers for the code of every ``o3.TensorProduct`` that it builds.
:func:`e3nn_backend` puts hamfast at the head of that list.
:func:`accelerate` exchanges the code inside a model that exists already.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from e3nn import o3
from e3nn.o3._tensor_product import _tensor_product as _e3nn
from e3nn.o3._tensor_product._codegen import codegen_tensor_product_left_right
from torch import Tensor, fx, nn

from hamfast.nn.drop_in_pyg import is_pyg_attention, replacement_of
from hamfast.ops.tensor_product import broadcast_tensor_product
from hamfast.plan import Instruction, Plan
from hamfast.plan.plan import as_blocks

_CODE = "_compiled_main_left_right"  # e3nn's name for the module that runs


torch.library.define("hamfast::e3nn_product", "(Tensor x, Tensor y, Tensor weight, str plan) -> Tensor")


@torch.library.impl("hamfast::e3nn_product", "CompositeImplicitAutograd")
def _e3nn_product(x: Tensor, y: Tensor, weight: Tensor, plan: str) -> Tensor:
    parsed = Plan.parse(plan)
    return broadcast_tensor_product(x, y, weight if parsed.weight_numel else None, parsed)


class Product(nn.Module):
    """The code of one ``o3.TensorProduct``, which takes and returns what e3nn's generated code
    does.
    """

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan, self.text = plan, plan.text()

    def forward(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """``[..., dim_in1]``, ``[..., dim_in2]`` -> ``[..., dim_out]``, in the layout ``mul_ir``.

        Args:
            weight: ``[weight_numel]`` for all rows, or ``[..., weight_numel]``. A plan without
                weights ignores it.
        """
        if torch.jit.is_scripting():  # TorchScript knows ops and strings, and no plans
            return torch.ops.hamfast.e3nn_product(x, y, weight, self.text)
        else:
            return self._run(x, y, weight)

    @torch.jit.unused
    def _run(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return broadcast_tensor_product(x, y, weight if self.plan.weight_numel else None, self.plan)

    def extra_repr(self) -> str:
        """What ``print`` of the module says in its brackets."""
        return f"hamfast, {len(self.plan.instructions)} paths"


def plan_of(irreps_in1, irreps_in2, irreps_out, instructions) -> Plan:
    """The plan of instructions as e3nn keeps them: their ``path_weight`` holds the whole
    normalisation.
    """
    made, offset = [], 0
    for ins in instructions:
        shape = tuple(ins.path_shape)
        made.append(
            Instruction(
                ins.i_in1,
                ins.i_in2,
                ins.i_out,
                ins.connection_mode,
                bool(ins.has_weight),
                float(ins.path_weight),
                shape,
                offset,
            )
        )
        offset += math.prod(shape) if ins.has_weight else 0
    return Plan(as_blocks(irreps_in1), as_blocks(irreps_in2), as_blocks(irreps_out), tuple(made))


def _graph_module(plan: Plan, theirs: nn.Module) -> fx.GraphModule:
    """The code that e3nn asks for.

    Args:
        theirs: what e3nn would run. Its tables stay in the ``state_dict``, or no checkpoint would
            fit.
    """
    graph, root = fx.Graph(), nn.Module()
    operands = [graph.placeholder(name, torch.Tensor) for name in ("x1", "x2", "w")]
    for name, buffer in theirs.named_buffers(recurse=False):
        root.register_buffer(name, buffer)
        graph.get_attr(name)  # what the graph does not name is lost in copies
    graph.output(graph.call_module("product", tuple(operands)), torch.Tensor)
    root.product = Product(plan)
    return fx.GraphModule(root, graph, class_name="hamfast_tensor_product")


def _provider(irreps_in1, irreps_in2, irreps_out, instructions, shared_weights, specialized_code, optimize_einsums):
    theirs = codegen_tensor_product_left_right(
        irreps_in1, irreps_in2, irreps_out, instructions, shared_weights, specialized_code, False
    )
    return _graph_module(plan_of(irreps_in1, irreps_in2, irreps_out, instructions), theirs)


def set_e3nn_backend(enabled: bool = True) -> None:
    """From now on every ``o3.TensorProduct`` that is built runs on hamfast.

    Args:
        enabled: False goes back to e3nn's own code.
    """
    providers = _e3nn._CODEGEN_PROVIDERS_LEFT_RIGHT
    while _provider in providers:
        providers.remove(_provider)
    if enabled:
        providers.insert(0, _provider)


@contextmanager
def e3nn_backend() -> Iterator[None]:
    """Every ``o3.TensorProduct`` that is built inside runs on hamfast, there and afterwards.

    Weights, results and ``state_dict`` are the same: ``with hamfast.e3nn_backend(): model =
    build_model()``.
    Copies, pickles and TorchScript of such modules need hamfast to be loaded.
    """
    before = _provider in _e3nn._CODEGEN_PROVIDERS_LEFT_RIGHT
    set_e3nn_backend(True)
    try:
        yield
    finally:
        set_e3nn_backend(before)


@dataclass(frozen=True)
class Replacement:
    """What :func:`accelerate` did with one module."""

    name: str
    """Where the module is in the model, as ``named_modules`` says it."""
    kind: str
    """The module's class before, by name."""
    done: bool
    """Does it run on hamfast now?"""
    text: str
    """What runs now in its stead, or why the module was left alone."""


@dataclass(frozen=True)
class AccelerateReport:
    """All layers of a model that hamfast has a counterpart for. ``print`` shows them, one a
    line."""

    replacements: tuple[Replacement, ...]

    @property
    def replaced(self) -> list[str]:
        """The names of the modules that run on hamfast now."""
        return [r.name for r in self.replacements if r.done]

    def __str__(self) -> str:
        if not self.replacements:
            return "hamfast.accelerate: found no tensor products of e3nn and no attention layers of PyG"
        lines = [f"hamfast.accelerate: {len(self.replaced)} of {len(self.replacements)} layers run on hamfast"]
        width = max(len(r.name) for r in self.replacements)
        for r in self.replacements:
            lines.append(f"  {r.name:<{width}}  {r.kind}: {'' if r.done else 'left alone, '}{r.text}")
        return "\n".join(lines)


def accelerate(module: nn.Module) -> AccelerateReport:
    """Makes the tensor products of e3nn and the attention layers of PyG inside ``module`` run on
    hamfast.

    The module is changed in place.
    Of an ``e3nn.o3.TensorProduct``, or of a subclass, only the generated code is exchanged.
    Its class, parameters, buffers, hooks and ``state_dict`` stay.
    PyG's ``TransformerConv`` becomes :class:`hamfast.nn.GraphTransformerConv`, and its
    ``GATv2Conv`` becomes
    :class:`hamfast.nn.GATv2Conv`.
    They hold the same parameters and have the same ``state_dict``, so optimizers keep working.

    MACE's ``SymmetricContraction`` gets a subclass of its class, and keeps all it has.

    Args:
        module: any model. Modules compiled to TorchScript are left alone.

    Returns:
        A report that names each of these layers, and says what runs in its stead or why it was left
        alone.
    """
    found = []
    exchanged: dict[int, nn.Module] = {}
    for name, child in list(module.named_modules(remove_duplicate=False)):
        label = name or "(the module itself)"
        if isinstance(child, torch.jit.ScriptModule):
            if getattr(child, "original_name", "").endswith("TensorProduct"):
                found.append(
                    Replacement(label, child.original_name, False, "it is TorchScript; accelerate before scripting")
                )
        elif isinstance(child, o3.TensorProduct):
            if id(child) not in exchanged:
                exchanged[id(child)] = child
                found.append(_replace(label, child))
        elif is_pyg_attention(child):
            found.append(_exchange(module, name, child, exchanged))
        elif "mace.modules.symmetric_contraction" in sys.modules and id(child) not in exchanged:
            mace = importlib.import_module("hamfast.nn.drop_in_mace")
            kind, done = type(child).__name__, mace.exchange(child)
            if done is not None:
                exchanged[id(child)] = child
                found.append(Replacement(label, kind, callable(done), mace.TEXT if callable(done) else done))
    return AccelerateReport(tuple(found))


def _exchange(module: nn.Module, name: str, child: nn.Module, exchanged: dict[int, nn.Module]) -> Replacement:
    """Replaces one of PyG's layers by hamfast's; a layer that a model holds twice stays one
    layer."""
    before = type(child).__name__
    if not name:
        return Replacement("(the module itself)", before, False, "a module cannot replace itself; wrap it in another")
    made = exchanged.get(id(child)) or replacement_of(child)
    if isinstance(made, str):
        return Replacement(name, before, False, made)
    exchanged[id(child)] = made
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, made)
    return Replacement(name, before, True, f"hamfast.nn.{type(made).__name__}")


def _replace(name: str, product: o3.TensorProduct) -> Replacement:
    plan = plan_of(product.irreps_in1, product.irreps_in2, product.irreps_out, product.instructions)
    setattr(product, _CODE, _graph_module(plan, getattr(product, _CODE)))
    text = "tensor product on hamfast"
    return Replacement(name, type(product).__name__, True, text)
