"""hamfast under e3nn's own tensor products and PyG's attention layers.

A model's code and its ``state_dict`` stay as they are.
e3nn asks a list of code providers for the code of every ``o3.TensorProduct`` that it builds.
:func:`e3nn_backend` puts hamfast at the head of that list.
:func:`accelerate` exchanges the code inside a model that exists already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from e3nn import o3
from e3nn.o3._tensor_product import _tensor_product as _e3nn
from e3nn.o3._tensor_product._codegen import codegen_tensor_product_left_right
from torch import Tensor, fx, nn

from hamfast.nn.adapters import adapt, convolution  # noqa: F401  (registers an op that TorchScript calls)
from hamfast.nn.checks import CallsPython
from hamfast.nn.e3nn_linear import LinearCode, why_better_alone, why_not
from hamfast.nn.evaluation import Comparison, compare, evaluate
from hamfast.nn.found_frames import product_in_frames
from hamfast.nn.found_species import product_with_species
from hamfast.nn.op_times import OpTimes, op_times
from hamfast.nn.packaged import is_a
from hamfast.ops.tensor_product import broadcast_tensor_product
from hamfast.plan import Plan
from hamfast.plan.plan import plan_of_e3nn

_CODE = "_compiled_main_left_right"  # e3nn's names for the modules that run
_LINEAR_CODE = "_compiled_main"
_PRODUCT_TEXT, _LINEAR_TEXT = "tensor product on hamfast", "linear layer on hamfast"


torch.library.define("hamfast::e3nn_product", "(Tensor x, Tensor y, Tensor weight, str plan) -> Tensor")


@torch.library.impl("hamfast::e3nn_product", "CompositeImplicitAutograd")
def _e3nn_product(x: Tensor, y: Tensor, weight: Tensor, plan: str) -> Tensor:
    parsed = Plan.parse(plan)
    return broadcast_tensor_product(x, y, weight if parsed.weight_numel else None, parsed)


class Product(CallsPython, nn.Module):
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
        for special in (product_with_species, product_in_frames):
            out = special(x, y, weight, self.plan)
            if out is not None:
                return out
        return broadcast_tensor_product(x, y, weight if self.plan.weight_numel else None, self.plan)

    def extra_repr(self) -> str:
        """What ``print`` of the module says in its brackets."""
        return f"hamfast, {len(self.plan.instructions)} paths"


def _graph_module(code: nn.Module, operands: Sequence[str], theirs: nn.Module) -> fx.GraphModule:
    """The code that e3nn asks for: it can copy and pickle modules of this class alone.

    Args:
        code: takes the operands.
        theirs: what e3nn would run. Its tables stay in the ``state_dict``, or no checkpoint would
            fit.
    """
    graph, root = fx.Graph(), nn.Module()
    given = [graph.placeholder(name, torch.Tensor) for name in operands]
    for name, buffer in theirs.named_buffers(recurse=False):
        root.register_buffer(name, buffer)
        graph.get_attr(name)  # what the graph does not name is lost in copies
    graph.output(graph.call_module("kernel", tuple(given)), torch.Tensor)
    root.kernel = code
    return fx.GraphModule(root, graph, class_name=f"hamfast_{type(code).__name__}")


def _product_module(plan: Plan, theirs: nn.Module) -> fx.GraphModule:
    return _graph_module(Product(plan), ("x1", "x2", "w"), theirs)


def _provider(irreps_in1, irreps_in2, irreps_out, instructions, shared_weights, specialized_code, optimize_einsums):
    theirs = codegen_tensor_product_left_right(
        irreps_in1, irreps_in2, irreps_out, instructions, shared_weights, specialized_code, False
    )
    return _product_module(plan_of_e3nn(irreps_in1, irreps_in2, irreps_out, instructions), theirs)


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
    better_alone: bool = False
    """Was it left alone because its own code is as fast or faster?"""


@dataclass(frozen=True)
class AccelerateReport:
    """All layers of a model that hamfast has a counterpart for. ``print`` shows them, one a
    line."""

    replacements: tuple[Replacement, ...]
    comparisons: tuple[Comparison, ...] = ()
    """With ``verify``: the results before and after, one by one."""
    times: OpTimes | None = None
    """With ``profile``: where the time of a step went before, and goes now."""
    undo: tuple[Callable[[], None], ...] = field(default=(), repr=False, compare=False)
    """What takes each change back, in the order in which they were made."""

    @property
    def replaced(self) -> list[str]:
        """The names of the modules that run on hamfast now."""
        return [r.name for r in self.replacements if r.done]

    @property
    def left_alone(self) -> list[str]:
        """The names of those that hamfast has a counterpart for but could not exchange.

        Modules whose own code is as fast or faster are in neither list.
        """
        return [r.name for r in self.replacements if not (r.done or r.better_alone)]

    @property
    def exchanged(self) -> str:
        """How many modules run on hamfast now, of those that would gain: ``10 of 10``."""
        return f"{len(self.replaced)} of {len(self.replaced) + len(self.left_alone)}"

    def take_back(self) -> None:
        """Puts the model's layers back as they were, around the parameters that it has now.

        Exports for programs that have no Python need it. ``accelerate`` may be called again.
        """
        for undo in reversed(self.undo):
            undo()

    @property
    def agrees(self) -> bool:
        """Are all results that were compared the same, up to rounding?"""
        return all(c.agrees for c in self.comparisons)

    def __str__(self) -> str:
        if not self.replacements:
            return "hamfast.accelerate: found no tensor products of e3nn, and no layers of other packages that it knows"
        lines = [f"hamfast.accelerate: {self.exchanged} layers run on hamfast"]
        as_they_are = sum(r.better_alone for r in self.replacements)
        if as_they_are:
            lines[0] += f"; best as they are: {as_they_are}"
        width = max(len(r.name) for r in self.replacements)
        for r in self.replacements:
            how = "" if r.done else "best as it is, " if r.better_alone else "left alone, "
            lines.append(f"  {r.name:<{width}}  {r.kind}: {how}{r.text}")
        if self.comparisons:
            lines.append("verified" if self.agrees else "the results differ, so the model was put back as it was")
            lines += [f"  {c}" for c in self.comparisons]
        if self.times is not None:
            lines.append(str(self.times))
        return "\n".join(lines)


class _Changes:
    """The changes of one :func:`accelerate`, and how to take them back."""

    def __init__(self) -> None:
        self.found: list[Replacement] = []
        self.undo: list[Callable[[], None]] = []
        self.seen: set[int] = set()
        """Modules that are taken care of, by identity: a model may hold one twice."""

    def note(
        self,
        name: str,
        kind: str,
        done: bool,
        text: str,
        undo: Callable[[], None] | None = None,
        better_alone: bool = False,
    ) -> None:
        self.found.append(Replacement(name or "(the module itself)", kind, done, text, better_alone))
        if undo is not None:
            self.undo.append(undo)

    def take_back(self) -> None:
        for undo in reversed(self.undo):
            undo()
        self.undo.clear()
        reason = "its results or those of another layer differed"
        self.found = [Replacement(r.name, r.kind, False, reason) if r.done else r for r in self.found]


def accelerate(module: nn.Module, verify: Any = None, profile: Any = None) -> AccelerateReport:
    """Makes the tensor products of e3nn, the convolutions around them and the attention layers of
    PyG inside ``module`` run on hamfast.

    The module is changed in place.

    - Of an ``e3nn.o3.TensorProduct``, or of a subclass, only the generated code is exchanged.
      Its class, parameters, buffers, hooks and ``state_dict`` stay.
    - Convolutions of packages that :mod:`hamfast.nn.adapters` knows get another class, which is a
      subclass of their own: gather, product and sum over edges become one op. So do MACE's
      ``SymmetricContraction``, PyG's ``TransformerConv`` and ``GATv2Conv``, and the attention of
      TorchMD-NET's equivariant Transformer.
      Parameters stay the same objects, so optimizers keep working.

    Args:
        module: any model. Modules compiled to TorchScript are left alone.
        verify: what the model takes: its argument, or a tuple of its arguments. Outputs, forces and
            the gradient of a force loss are compared before and after
            (:func:`hamfast.nn.evaluation.evaluate`). If they differ by more than rounding explains,
            the model is put back as it was, and the report says by how much they differ.
        profile: the same sort of batch. The report says where the time of a step goes
            (:mod:`hamfast.nn.op_times`), and what the exchange brought.

    Returns:
        A report that names each of these layers, and says what runs in its stead or why it was left
        alone.
    """
    before = None if verify is None else evaluate(module, verify)
    times_before = None if profile is None else op_times(module, profile)
    changes = _Changes()
    for name, child in list(module.named_modules(remove_duplicate=False)):
        _change(changes, name, child)
    comparisons: tuple[Comparison, ...] = ()
    if before is not None:
        comparisons = compare(before, evaluate(module, verify), module)
        if not all(c.agrees for c in comparisons):
            changes.take_back()
    times = None if times_before is None else OpTimes(times_before, op_times(module, profile))
    return AccelerateReport(tuple(changes.found), comparisons, times, tuple(changes.undo))


def _change(changes: _Changes, name: str, child: nn.Module) -> None:
    """Exchanges one module, if it is one of those known here."""
    kind = type(child).__name__
    if isinstance(child, torch.jit.ScriptModule):
        kind = getattr(child, "original_name", "")
        if kind.endswith("TensorProduct"):
            changes.note(name, kind, False, "it is TorchScript; accelerate before scripting")
        return
    if id(child) in changes.seen:
        return
    if is_a(child, o3.TensorProduct):
        changes.seen.add(id(child))
        _exchange_code(changes, name, child)
        return
    if is_a(child, o3.Linear):
        changes.seen.add(id(child))
        _exchange_linear(changes, name, child)
        return
    adapted = adapt(child)
    if adapted is not None:
        changes.seen |= {id(m) for m in (child, *adapted.products)}
        changes.note(name, kind, adapted.done, adapted.text, adapted.undo)


def _set_code(module: nn.Module, name: str, code: nn.Module) -> Callable[[], None]:
    """Exchanges the generated code of a module of e3nn; returns what undoes it.

    e3nn keeps the names of its generated code in ``__codegen__``, and pickles what they name by
    itself. It cannot where e3nn comes from a package of ``torch.package``, whose code imports
    nothing else. Without its name there hamfast's code is a submodule like any other.
    """
    before, names = getattr(module, name), module.__codegen__
    setattr(module, name, code)
    module.__codegen__ = [n for n in names if n != name]  # type: ignore[assignment, union-attr]

    def undo() -> None:
        setattr(module, name, before)
        module.__codegen__ = names

    return undo


def _is_ours(code: nn.Module) -> bool:
    """Is it code of hamfast, of :func:`e3nn_backend` or an earlier :func:`accelerate`?

    It is not exchanged again: taking both changes back in the wrong order would leave one.
    """
    return isinstance(getattr(code, "kernel", None), Product | LinearCode)


def _exchange_code(changes: _Changes, name: str, product: o3.TensorProduct) -> None:
    before = getattr(product, _CODE)
    if _is_ours(before):
        return changes.note(name, type(product).__name__, True, _PRODUCT_TEXT)
    plan = plan_of_e3nn(product.irreps_in1, product.irreps_in2, product.irreps_out, product.instructions)
    back = _set_code(product, _CODE, _product_module(plan, before))

    def undo() -> None:
        tables = dict(getattr(product, _CODE).named_buffers(recurse=False))
        for table in list(tables.values())[:1]:  # the model may have been moved since
            before.to(device=table.device, dtype=table.dtype)
        back()

    changes.note(name, type(product).__name__, True, _PRODUCT_TEXT, undo)


def _exchange_linear(changes: _Changes, name: str, linear: o3.Linear) -> None:
    kind, reason, before = type(linear).__name__, why_not(linear), getattr(linear, _LINEAR_CODE)
    if reason:
        return changes.note(name, kind, False, reason)
    reason = why_better_alone(linear)
    if reason:
        return changes.note(name, kind, False, reason, better_alone=True)
    if _is_ours(before):
        return changes.note(name, kind, True, _LINEAR_TEXT)
    undo = _set_code(linear, _LINEAR_CODE, _graph_module(LinearCode(linear), ("x", "w", "b"), before))
    changes.note(name, kind, True, _LINEAR_TEXT, undo)
