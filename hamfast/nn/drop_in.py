"""hamfast under e3nn's own tensor products and PyG's attention layers: no edit to a model's code or its ``state_dict``.

e3nn asks a list of code providers for the code of every ``o3.TensorProduct`` it builds. :func:`e3nn_backend` puts hamfast at the
head of that list; :func:`accelerate` exchanges the code inside a model that exists already.
"""

from __future__ import annotations

import math
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
from hamfast.plan.cost import choose_lowering
from hamfast.plan.plan import as_blocks

_CODE = "_compiled_main_left_right"  # e3nn's name for the module that runs


torch.library.define("hamfast::e3nn_product", "(Tensor x, Tensor y, Tensor weight, str plan) -> Tensor")


@torch.library.impl("hamfast::e3nn_product", "CompositeImplicitAutograd")
def _e3nn_product(x: Tensor, y: Tensor, weight: Tensor, plan: str) -> Tensor:
    parsed = Plan.parse(plan)
    return broadcast_tensor_product(x, y, weight if parsed.weight_numel else None, parsed)


class Product(nn.Module):
    """The code of one ``o3.TensorProduct``: ``(x, y, weight) -> out``, as e3nn's generated code takes and returns them."""

    def __init__(self, plan: Plan, shared_weights: bool):
        super().__init__()
        self.plan, self.shared_weights, self.text = plan, shared_weights, plan.text()

    def forward(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # TorchScript knows ops and strings, and no plans
            return torch.ops.hamfast.e3nn_product(x, y, weight, self.text)
        else:
            return self._run(x, y, weight)

    @torch.jit.unused
    def _run(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return broadcast_tensor_product(x, y, weight if self.plan.weight_numel else None, self.plan)

    def extra_repr(self) -> str:
        return f"hamfast, {choose_lowering(self.plan, self.shared_weights, 'cpu')}"


def plan_of(irreps_in1, irreps_in2, irreps_out, instructions) -> Plan:
    """The plan of instructions as e3nn keeps them: with ``path_weight`` holding the whole normalisation."""
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


def _graph_module(plan: Plan, shared_weights: bool, theirs: nn.Module) -> fx.GraphModule:
    """The code e3nn asks for. ``theirs``: what e3nn would run; its tables stay in the ``state_dict``, or no checkpoint would fit."""
    graph, root = fx.Graph(), nn.Module()
    operands = [graph.placeholder(name, torch.Tensor) for name in ("x1", "x2", "w")]
    for name, buffer in theirs.named_buffers(recurse=False):
        root.register_buffer(name, buffer)
        graph.get_attr(name)  # what the graph does not name is lost in copies
    graph.output(graph.call_module("product", tuple(operands)), torch.Tensor)
    root.product = Product(plan, shared_weights)
    return fx.GraphModule(root, graph, class_name="hamfast_tensor_product")


def _provider(irreps_in1, irreps_in2, irreps_out, instructions, shared_weights, specialized_code, optimize_einsums):
    theirs = codegen_tensor_product_left_right(
        irreps_in1, irreps_in2, irreps_out, instructions, shared_weights, specialized_code, False
    )
    return _graph_module(plan_of(irreps_in1, irreps_in2, irreps_out, instructions), shared_weights, theirs)


def set_e3nn_backend(enabled: bool = True) -> None:
    """From now on every ``o3.TensorProduct`` that is built runs on hamfast (or, with False, on e3nn's own code again)."""
    providers = _e3nn._CODEGEN_PROVIDERS_LEFT_RIGHT
    while _provider in providers:
        providers.remove(_provider)
    if enabled:
        providers.insert(0, _provider)


@contextmanager
def e3nn_backend() -> Iterator[None]:
    """``with hamfast.e3nn_backend():`` every ``o3.TensorProduct`` built inside runs on hamfast, there and afterwards.

    Same weights, numbers and ``state_dict``. Copies, pickles and checkpoints of such modules need hamfast to be loaded.
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
    kind: str
    done: bool
    text: str
    """The lowering that runs on a CPU, hamfast's layer, or why the module was left alone."""


@dataclass(frozen=True)
class AccelerateReport:
    """All layers of a model that hamfast knows. ``print`` it."""

    replacements: tuple[Replacement, ...]

    @property
    def replaced(self) -> list[str]:
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
    """Makes every ``e3nn.o3.TensorProduct`` and every attention layer of PyG inside ``module`` run on hamfast, in place.

    Of e3nn's modules (subclasses included) only the generated code is exchanged: classes, parameters, buffers, hooks and the
    ``state_dict`` stay. PyG's ``TransformerConv`` and ``GATv2Conv`` become :class:`hamfast.nn.GraphTransformerConv` and
    :class:`hamfast.nn.GATv2Conv` around the same parameters, with the same ``state_dict``; optimizers keep working.

    Args:
        module: any model. Modules compiled to TorchScript are left alone.

    Returns:
        A report that names each of these layers, and what was done with it.
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
    return AccelerateReport(tuple(found))


def _exchange(module: nn.Module, name: str, child: nn.Module, exchanged: dict[int, nn.Module]) -> Replacement:
    """Puts hamfast's layer in the place of one of PyG's; a layer that stands in two places stays one."""
    kind = type(child).__name__
    if not name:
        return Replacement("(the module itself)", kind, False, "a module cannot replace itself; wrap it in another")
    made = exchanged.get(id(child)) or replacement_of(child)
    if isinstance(made, str):
        return Replacement(name, kind, False, made)
    exchanged[id(child)] = made
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, made)
    return Replacement(name, kind, True, f"hamfast.nn.{type(made).__name__}")


def _replace(name: str, product: o3.TensorProduct) -> Replacement:
    kind = type(product).__name__
    plan = plan_of(product.irreps_in1, product.irreps_in2, product.irreps_out, product.instructions)
    setattr(product, _CODE, _graph_module(plan, product.shared_weights, getattr(product, _CODE)))
    return Replacement(name, kind, True, choose_lowering(plan, product.shared_weights, "cpu"))
