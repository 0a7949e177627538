"""MACE's product basis as a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from hamfast.nn.checks import CallsPython
from hamfast.ops import symmetric_contraction
from hamfast.ops.symmetric_contraction import Form, make_tables
from hamfast.plan import ContractionPlan, contraction_plan
from hamfast.plan.generalized_cg import generalized_cg
from hamfast.records.choices import Slot
from hamfast.records.ops import CONTRACTION_TABLES

torch.library.define(
    "hamfast::contraction_of_tables", "(Tensor x, Tensor y, Tensor weight, Tensor[] tables, int[] dims) -> Tensor"
)


@torch.library.impl("hamfast::contraction_of_tables", "CompositeImplicitAutograd")
def _contraction_of_tables(x: Tensor, y: Tensor, weight: Tensor, tables: list[Tensor], dims: list[int]) -> Tensor:
    """For TorchScript and torch.fx, which have no plans.

    Values are float64 with the bits of integers: so they stay what they are when a model changes
    its dtype.
    """
    given = CONTRACTION_TABLES.fields(*tables)
    values = (given.by_path_value, given.by_term_value)
    by_path_value, by_term_value = (t.view(torch.float64).to(x.dtype) for t in values)
    given = given._replace(by_path_value=by_path_value, by_term_value=by_term_value)
    return Form(given, dims).derivatives((x, y, weight, None), None, (Slot.G,))[Slot.G]


class RunsContraction(CallsPython, nn.Module):
    """What runs a contraction whose parts have MACE's names: ``contractions``, and in each
    ``weights_max``, ``weights`` and a buffer of coupling coefficients for each degree.

    MACE's own module gets this by a change of its class
    (:mod:`hamfast.nn.adapters.mace_contraction`).
    """

    if TYPE_CHECKING:  # TorchScript would take annotations for those of its own attributes
        contractions: Any
        plan: ContractionPlan
        _dims: list[int]

    @torch.jit.unused
    def make_plan(self) -> None:
        """Makes the plan of the coefficients that are in the buffers now."""
        blocks = [tensors_of(contraction) for contraction in self.contractions]
        self.plan = contraction_plan(blocks, blocks[0][0].shape[1])
        tables = make_tables(self.plan, torch.float64, torch.device("cpu"))
        # For TorchScript; they must be where the weights are.
        device = self.contractions[0].weights_max.device
        for name, table in zip(CONTRACTION_TABLES.names, tables.tensors, strict=True):
            table = table.view(torch.int64) if table.is_floating_point() else table
            self.register_buffer(f"_{name}", table.to(device), persistent=False)
        self._dims = list(tables.dims)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The contraction of every node.

        Args:
            x: ``[nodes, channels, dim]``: irreps_in, each once.
            y: ``[nodes, num_elements]``, usually a 1 at the node's species.

        Returns:
            ``[nodes, irreps_out.dim]``, in the layout ``mul_ir``.
        """
        rows: list[Tensor] = []
        for contraction in self.contractions:
            rows.append(contraction.weights_max)
            for weight in contraction.weights:
                rows.append(weight)
        weights = torch.cat(rows, dim=1)
        if torch.jit.is_scripting():
            return self._of_tables(x, y, weights)
        else:
            return self._run(x, y, weights)

    def _of_tables(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        tables = [
            self._products,
            self._groups,
            self._buckets,
            self._factors,
            self._path_ptr,
            self._by_path,
            self._by_path_value,
            self._term_ptr,
            self._by_term,
            self._by_term_value,
            self._blocks,
        ]
        return torch.ops.hamfast.contraction_of_tables(x, y, weights, tables, self._dims)

    @torch.jit.unused
    def _run(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):  # MACE traces this module before torch.compile
            return self._of_tables(x, y, weights)
        return symmetric_contraction(x, weights, y, self.plan)


def tensors_of(contraction: nn.Module) -> list[np.ndarray]:
    """The coupling coefficients of one irrep of the result, in the order of the weights: from the
    highest degree to the lowest."""
    degree = len(contraction.weights) + 1  # type: ignore[arg-type]
    found = []
    for n in range(degree, 0, -1):
        tensor = getattr(contraction, f"U_matrix_{n}").detach().cpu().numpy()
        found.append(tensor[None] if tensor.ndim == n + 1 else tensor)
    return found


def remake_plan(layer: RunsContraction, keys: object) -> None:
    """A hook: what is computed is what the buffers hold, also those that were loaded."""
    layer.make_plan()


class SymmetricContraction(RunsContraction):
    """``mace.modules.SymmetricContraction``: same arguments, weights and ``state_dict``.

    Its buffers hold the coupling coefficients. What they hold is what is computed, also after
    ``load_state_dict``.

    Args:
        irreps_in: the irreps of a channel, each with the number of channels as its multiplicity.
        irreps_out: of the result, likewise.
        correlation: the highest number of factors, or one for each irrep of ``irreps_out`` (a
            dictionary of its entries).
        irrep_normalization, path_normalization: as in MACE, where they change nothing.
        use_reduced_cg: the independent couplings, in the basis of cuequivariance, which has to be
            installed.
        internal_weights: must be left out, or True.
        num_elements: species, the width of y.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """

    def __init__(
        self,
        irreps_in,
        irreps_out,
        correlation: int | dict,
        irrep_normalization: str | None = "component",
        path_normalization: str | None = "element",
        use_reduced_cg: bool | None = False,
        internal_weights: bool | None = None,
        shared_weights: bool | None = None,
        num_elements: int | None = None,
    ):
        super().__init__()
        if internal_weights is False:
            raise ValueError("SymmetricContraction: internal_weights: expected True, found False")
        if num_elements is None or num_elements < 1:
            raise ValueError(f"SymmetricContraction: num_elements: expected 1 or more, found {num_elements}")
        self.irreps_in, self.irreps_out = Irreps(irreps_in), Irreps(irreps_out)
        channels = {mul for mul, _ in self.irreps_in} | {mul for mul, _ in self.irreps_out}
        if len(channels) != 1:
            raise ValueError(
                "SymmetricContraction: expected irreps_in and irreps_out with one multiplicity, "
                f"found {self.irreps_in} and {self.irreps_out}"
            )
        single = str(Irreps([ir for _, ir in self.irreps_in]))
        self.contractions = nn.ModuleList()
        for entry in self.irreps_out:
            degree = correlation if isinstance(correlation, int) else correlation[entry]
            if degree < 1:
                raise ValueError(f"SymmetricContraction: correlation: expected 1 or more, found {degree}")
            tensors = [generalized_cg(single, str(entry.ir), n, bool(use_reduced_cg)) for n in range(1, degree + 1)]
            self.contractions.append(ContractionWeights(tensors, num_elements, channels.copy().pop()))
        self.make_plan()
        self.register_load_state_dict_post_hook(remake_plan)

    def extra_repr(self) -> str:
        """What ``print`` of the module says in its brackets."""
        return f"{self.irreps_in} -> {self.irreps_out}, {len(self.plan.monomials)} terms"


class ContractionWeights(nn.Module):
    """Weights and coupling coefficients of one irrep of the result, by MACE's names.

    Args:
        tensors: of one factor, of two, ...: ``[2 l + 1, dim, ..., dim, paths]``.
        species: rows of weights.
        channels: of each weight.
    """

    def __init__(self, tensors: list[np.ndarray], species: int, channels: int):
        super().__init__()
        self.weights = nn.ParameterList([])
        for n, tensor in enumerate(tensors):
            table = torch.tensor(tensor, dtype=torch.get_default_dtype())
            # MACE keeps no axis of length 1 for scalars.
            self.register_buffer(f"U_matrix_{n + 1}", table[0] if table.shape[0] == 1 else table)
        for n in reversed(range(len(tensors))):
            paths = tensors[n].shape[-1]
            weight = nn.Parameter(torch.randn(species, paths, channels) / paths)
            if n == len(tensors) - 1:
                self.weights_max = weight
            else:
                self.weights.append(weight)
        self._drop_weights_without_paths(tensors)

    def _drop_weights_without_paths(self, tensors: list[np.ndarray]) -> None:
        """As MACE does, which counts its weights from the highest degree down, and these from the
        lowest up."""
        for n, tensor in enumerate(tensors):
            nothing = not tensor.any()
            name = "weights_max_zeroed" if n == len(tensors) - 1 else f"weights_{n}_zeroed"
            weight = self.weights_max if n == len(tensors) - 1 else self.weights[n]
            if nothing:
                weight.requires_grad_(False).zero_()
            self.register_buffer(name, torch.tensor(nothing))
