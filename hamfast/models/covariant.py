"""Stage 1: the covariant network.

Function for function it is DeepH-E3 (Gong et al., Nature Communications 14, 2848, 2023), or, with
an environment, a local network of the same layers: atoms see their neighbours within a radius, and
pairs of any length are made of the two atoms' features. Nodes are atoms. An edge is an ordered pair
of atoms for which the Hamiltonian has a block. A message runs from the block's column atom (the
sender) to its row atom (the receiver).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from e3nn.o3 import Irrep, Irreps
from torch import Tensor, nn

from hamfast.graph import CrystalGraph
from hamfast.models.data_axes import DataAxis
from hamfast.models.settings import CovariantConfig
from hamfast.models.sweeps import Piece, Sweeps, Whole
from hamfast.nn import (
    EdgeTensorProduct,
    EquivariantLayerNorm,
    FullyConnectedTensorProduct,
    Gate,
    GaussianBasis,
    Linear,
    RadialMLP,
    ScalarLayerNorm,
    SpeciesLinear,
    convert_layout,
    polynomial_envelope,
)
from hamfast.ops import EdgeFrames, EdgeIndex, EdgeSources, edge_frames, edge_index
from hamfast.targets import TargetSpec

LAYOUT = "ir_mul"
"""Layout of all features between the layers."""


class Messages:
    """What all convolutions of one forward pass share.

    Args:
        graph: the crystal.
        edges: its edges, sorted by sender and by receiver.
        frames: of the edges, see :func:`hamfast.ops.edge_frames`.
        radial: ``[edges, basis]``, the radial basis at each edge's length.
        num_species: of the data set.

    Attributes:
        pair: ``[edges]``, the index of the ordered species pair.
        envelope: ``[edges, 1]``, a factor of each message to a node; None for none.
    """

    def __init__(self, graph: CrystalGraph, edges: EdgeIndex, frames: EdgeFrames, radial: Tensor, num_species: int):
        self.graph, self.edges, self.frames, self.radial = graph, edges, frames, radial
        self.species = graph.species
        self.pair = graph.pair_species(num_species)
        self.atom_graph, self.edge_graph, self.num_graphs = graph.atom_graph, graph.edge_graph, graph.num_graphs
        self.envelope: Tensor | None = None


class EquivariantConvolution(nn.Module):
    """Tensor product with the edge's harmonics, gate, and a radial factor per channel.

    Args:
        config: of stage 1.
        irreps_in: of the operands of an edge, one after the other.
        irreps_out: that are wanted; those that no path makes are left out of ``self.irreps_out``.
    """

    def __init__(self, config: CovariantConfig, irreps_in: Irreps, irreps_out: Irreps):
        super().__init__()
        made = [(mul, ir) for mul, ir in irreps_out if path_exists(irreps_in, config.l_max, ir)]
        scalars = Irreps([(mul, ir) for mul, ir in made if ir.l == 0]).simplify()
        gated = Irreps([(mul, ir) for mul, ir in made if ir.l > 0]).simplify()
        gate_ir = Irrep("0e") if path_exists(irreps_in, config.l_max, Irrep("0e")) else Irrep("0o")
        self.gate = Gate(scalars, Irreps([(mul, gate_ir) for mul, _ in gated]), gated, layout=LAYOUT)
        self.product = EdgeTensorProduct(irreps_in, config.l_max, self.gate.irreps_in, layout=LAYOUT)
        self.irreps_out = self.gate.irreps_out
        self.radial = RadialMLP(config.num_basis, config.radial_hidden, self.irreps_out.num_irreps)

    def forward(self, x: EdgeSources, messages: Messages) -> Tensor:
        """The messages ``[edges, irreps_out.dim]``, in the layout ``ir_mul``."""
        return self.gate(self.product(x, messages.frames), self.radial(messages.radial))


class _Update(nn.Module):
    """The common end of node and edge updates: linear, species term, layer norm, skip connection.

    Args:
        config: of stage 1.
        irreps_old: of what is updated.
        irreps_conv_in: of the operands of an edge.
        irreps_out: that are wanted.
        num_species: species of nodes, or ordered species pairs of edges.
    """

    def __init__(
        self,
        config,
        irreps_old: Irreps,
        irreps_conv_in: Irreps,
        irreps_out: Irreps,
        num_species: int,
        normed: bool = True,
    ):
        super().__init__()
        self.linear_pre = Linear(irreps_old, irreps_old, biases=True, layout=LAYOUT)
        self.convolution = EquivariantConvolution(config, irreps_conv_in, irreps_out)
        self.irreps_out = self.convolution.irreps_out
        self.linear_post = Linear(self.irreps_out, self.irreps_out, biases=True, layout=LAYOUT)
        self.species = SpeciesLinear(irreps_old, num_species, self.irreps_out, layout=LAYOUT)
        self.norm: nn.Module | None = EquivariantLayerNorm(self.irreps_out, layout=LAYOUT)
        if config.environment is not None:  # the mean over a structure would be seen from anywhere in it
            self.norm = ScalarLayerNorm(self.irreps_out) if normed else None
        self.skip = Linear(irreps_old, self.irreps_out, layout=LAYOUT) if irreps_old != self.irreps_out else None

    def finish(self, old: Tensor, new: Tensor, species: Tensor, graph: Tensor, num_graphs: int) -> Tensor:
        """The updated features: what is new is normalised within each structure, then added."""
        new = self.before_norm(old, new, species)
        if isinstance(self.norm, EquivariantLayerNorm):
            new = self.norm(new, graph, num_graphs)
        elif self.norm is not None:
            new = self.norm(new)
        return self.added(old, new)

    def before_norm(self, old: Tensor, new: Tensor, species: Tensor) -> Tensor:
        """What is new, before it is normalised."""
        return self.linear_post(new) + self.species(old, species)

    def added(self, old: Tensor, new: Tensor) -> Tensor:
        """The updated features, of the old ones and what is new."""
        return new + (old if self.skip is None else self.skip(old))


class NodeUpdate(_Update):
    """Adds up the messages of each node's incoming edges.

    The message of an edge is made of the features ``[receiver | sender | edge]``.
    """

    data_axes = {"species": DataAxis.SPECIES_MATRICES}

    def __init__(self, config, irreps_node: Irreps, irreps_edge: Irreps, irreps_out: Irreps, num_species: int):
        super().__init__(config, irreps_node, irreps_node + irreps_node + irreps_edge, irreps_out, num_species)

    def sweep(self, sweeps: Sweeps, messages: Callable[[Piece], Messages], node: Tensor, edge: Any) -> Tensor:
        """The new features of the nodes, ``[atoms, irreps_out.dim]``.

        Args:
            sweeps: over the graph.
            messages: of a piece.
            node: ``[atoms, dim]``, the features.
            edge: ``[edges, dim]``, those of the edges, as a field.
        """
        prepared = self.linear_pre(node)

        def sums(piece: Piece) -> Tensor:
            own, rows = messages(piece), piece.nodes(prepared)
            update = self.convolution(operands_of_edges(rows, piece.edges(edge), own.edges), own)
            if own.envelope is not None:
                update = update * own.envelope
            return update.new_zeros(rows.shape[0], update.shape[1]).index_add(0, own.edges.receivers, update)

        return self.finish(node, sweeps.nodes(sums), sweeps.species, sweeps.atom_graph, sweeps.num_graphs)


class EdgeUpdate(_Update):
    """The same message, made of the new nodes, becomes the update of its edge."""

    data_axes = {"species": DataAxis.PAIR_MATRICES}

    def __init__(
        self,
        config,
        irreps_node: Irreps,
        irreps_edge: Irreps,
        irreps_out: Irreps,
        num_species: int,
        normed: bool = True,
    ):
        irreps_in = irreps_node + irreps_node + irreps_edge
        super().__init__(config, irreps_edge, irreps_in, irreps_out, num_species**2, normed)

    def forward(self, node: Tensor, edge: Tensor, messages: Messages) -> Tensor:
        """The new features of the edges, ``[edges, irreps_out.dim]``."""
        update = self._update(node, edge, messages)
        return self.finish(edge, update, messages.pair, messages.edge_graph, messages.num_graphs)

    def _update(self, node: Tensor, edge: Tensor, messages: Messages) -> Tensor:
        return self.convolution(operands_of_edges(node, self.linear_pre(edge), messages.edges), messages)

    def sweep(self, sweeps: Sweeps, messages: Callable[[Piece], Messages], node: Tensor, edge: Any) -> Any:
        """As :meth:`NodeUpdate.sweep`: the new features of the edges."""
        norm = self.norm
        if not isinstance(norm, EquivariantLayerNorm):
            return sweeps.edges(lambda p: (self(p.nodes(node), p.edges(edge), messages(p)),))[0]

        def before_norm(piece: Piece) -> tuple[Tensor]:
            old, own = piece.edges(edge), messages(piece)
            return (self.before_norm(old, self._update(piece.nodes(node), old, own), own.pair),)

        (new,) = sweeps.edges(before_norm)
        normed = sweeps.normed(norm, new)
        return sweeps.edges(lambda p: (self.added(p.edges(edge), normed(p)),))[0]


class NodeProduct(nn.Module):
    """Adds to the features of each atom a product of them with themselves.

    Features that are sums over the neighbours become sums over pairs of neighbours, and so on: each
    product knows angles between more of them.

    Args:
        config: of stage 1.
        irreps_in: of the atoms' features.
        irreps_out: that are wanted of the product; those that it cannot make are left out.
    """

    def __init__(self, config: CovariantConfig, irreps_in: Irreps, irreps_out: Irreps):
        super().__init__()
        factor = Irreps([(min(mul, config.product_channels), ir) for mul, ir in irreps_in])
        made = {ir for _, a in irreps_in for _, b in irreps_in for ir in a * b}
        self.irreps_out = Irreps([(mul, ir) for mul, ir in irreps_out if ir in made])
        self.left, self.right = (Linear(irreps_in, factor, layout=LAYOUT) for _ in range(2))
        self.product = FullyConnectedTensorProduct(factor, factor, self.irreps_out)
        self.skip = Linear(irreps_in, self.irreps_out, layout=LAYOUT)

    def forward(self, node: Tensor) -> Tensor:
        """``[atoms, irreps_in.dim]`` -> ``[atoms, irreps_out.dim]``."""
        left, right = (
            convert_layout(linear(node), linear.irreps_out, LAYOUT, "mul_ir") for linear in (self.left, self.right)
        )
        product = self.product(left, right)
        return self.skip(node) + convert_layout(product, self.irreps_out, "mul_ir", LAYOUT)


def operands_of_edges(node: Tensor, edge: Tensor, edges: EdgeIndex) -> EdgeSources:
    """``[receiver | sender | edge]`` of every edge, without gathering the rows of the nodes."""
    return EdgeSources((node, node, edge), ("receiver", "sender", "edge"), edges)


def add_to_onsite(output: Tensor, of_atoms: Tensor, onsite: Tensor, receivers: Tensor) -> Tensor:
    """``output`` with the rows of atoms added to those of their on-site edges.

    Args:
        output: ``[edges, dim]``.
        of_atoms: ``[atoms, dim]``.
        onsite: int64, the on-site edges.
        receivers: ``[edges]`` int64.
    """
    return output.index_add(0, onsite, of_atoms.index_select(0, receivers[onsite]))


def path_exists(irreps_in: Irreps, l_max: int, ir_out: Irrep) -> bool:
    """Can an irrep times some spherical harmonic up to l_max make ``ir_out``?"""
    return any(ir_out in ir * Irrep(l, (-1) ** l) for _, ir in irreps_in for l in range(l_max + 1))


def output_irreps(config: CovariantConfig, spec: TargetSpec) -> tuple[Irreps, Irreps]:
    """Irreps of the last node update and of the last edge update.

    The last edge update makes the target irreps, sorted. Products of the hidden irreps with
    harmonics do not reach all of them: ``0o``, which spin-orbit coupling has, needs an irrep whose
    parity is not (-1)^l. For each target out of reach the last nodes get a partner: the irrep of
    lowest l whose products make the target and which products of the hidden irreps make. Its
    multiplicity is that of the hidden irrep of its l, or else that of the last hidden irrep.
    Partners stand behind the hidden irreps. All this is as in DeepH-E3: the parameters of both
    networks have one order.

    Raises:
        ValueError: no such irrep makes a target.
    """
    mid = Irreps(config.irreps_mid)
    post_edge = spec.irreps.sort().irreps.simplify()
    partners: list[Irrep] = []
    for _, ir in post_edge:
        if path_exists(mid, config.l_max, ir):
            continue
        products = {candidate for l in range(config.l_max + 1) for candidate in ir * Irrep(l, (-1) ** l)}
        reached = sorted(candidate for candidate in products if path_exists(mid, config.l_max, candidate))
        if not reached:
            raise ValueError(
                f"irreps_mid = {config.irreps_mid} with l_max = {config.l_max} cannot make the target irrep {ir}; "
                "use a higher l_max, or irreps of higher l in irreps_mid"
            )
        if reached[0] not in partners:
            partners.append(reached[0])
    post_node = mid
    for partner in partners:
        multiplicities = [mul for mul, ir in mid if ir.l == partner.l] or [mid[-1].mul]
        post_node += Irreps([(mul, partner) for mul in multiplicities])
    return post_node, post_edge


class CovariantNetwork(nn.Module):
    """Predicts the irreps of every block from a crystal graph, and covariant features beside them.

    Args:
        config: settings of stage 1.
        spec: the targets.

    Raises:
        ValueError: as :func:`output_irreps`; or there are products without an environment.
    """

    data_axes = {
        "embedding": DataAxis.SPECIES_INPUTS,
        "output": DataAxis.ENTRY_OUTPUTS,
        "onsite_output": DataAxis.ENTRY_OUTPUTS,
    }

    def __init__(self, config: CovariantConfig, spec: TargetSpec):
        super().__init__()
        self.config, self.spec = config, spec
        mid = Irreps(config.irreps_mid)
        post_node, post_edge = output_irreps(config, spec)
        scalars = Irreps(f"{config.embed_dim}x0e")
        self.embedding = Linear(f"{spec.num_species}x0e", scalars, layout=LAYOUT)
        self.edge_basis = GaussianBasis(0.0, config.edge_basis_stop, config.embed_dim)
        self.radial_basis = GaussianBasis(0.0, config.cutoff, config.num_basis)
        node, edge = scalars, scalars
        self.node_updates, self.edge_updates, self.pair_updates = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        is_local = config.environment is not None
        if config.node_products and not is_local:
            raise ValueError(f"node_products = {config.node_products} needs an environment, found none")
        for n in range(config.num_blocks):
            last = n == config.num_blocks - 1
            self.node_updates.append(NodeUpdate(config, node, edge, post_node if last else mid, spec.num_species))
            node = self.node_updates[-1].irreps_out
            if not (last and is_local):
                self.edge_updates.append(EdgeUpdate(config, node, edge, post_edge if last else mid, spec.num_species))
                edge = self.edge_updates[-1].irreps_out
        self.node_products = nn.ModuleList()
        for _ in range(config.node_products):
            # What targets on an atom need beyond the hidden irreps, such as 2o of p and d.
            others = [(config.product_channels, ir) for _, ir in post_edge if ir not in mid]
            self.node_products.append(NodeProduct(config, node, (post_node + Irreps(others)).simplify()))
            node = self.node_products[-1].irreps_out
        if is_local:
            self.environment_basis = GaussianBasis(0.0, float(config.environment or 0), config.num_basis)
            edge = scalars
            for n in range(config.pair_blocks):
                last = n == config.pair_blocks - 1
                wanted = post_edge if last else mid
                self.pair_updates.append(EdgeUpdate(config, node, edge, wanted, spec.num_species, normed=False))
                edge = self.pair_updates[-1].irreps_out
        self.irreps_node, self.irreps_edge = node, edge
        self.output = Linear(edge, spec.irreps, biases=True, layout=LAYOUT)
        # A block of one atom is a function of its features alone.
        self.onsite_output = Linear(node, spec.irreps, biases=True, layout=LAYOUT) if is_local else None
        # The published network has this output and never uses it. It stays, so that the parameters
        # of both map one to one.
        self.unused_node_output = Linear(node, "1x0e", biases=True, layout=LAYOUT)
        self.unused_node_output.requires_grad_(False)
        features = [node, edge, mid, spec.irreps]
        self.l_max = max(ir.l for irreps in features for _, ir in irreps)

    def receptive_field(self, longest_pair: float) -> float:
        """Angstrom: how far from an atom others may be that change its features.

        Without an environment the layer norms add statistics over the whole structure.

        Args:
            longest_pair: angstrom, of the data.
        """
        return self.config.num_blocks * (longest_pair if self.config.environment is None else self.config.environment)

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters but those of the published network's output that nothing reads."""
        unused = set(self.unused_node_output.parameters())
        return (parameter for parameter in self.parameters() if parameter not in unused)

    def forward(self, graph: CrystalGraph) -> tuple[Tensor, Tensor, Tensor]:
        """Returns three tensors in the layout ``mul_ir``.

        The first is ``[edges, spec.dim]``: the irreps of the blocks, in units of the target
        normalisation. The others are the features of the nodes, ``[atoms, irreps_node.dim]``, and
        of the edges, ``[edges, irreps_edge.dim]``.
        """
        return self.sweep(Whole(graph))

    def sweep(self, sweeps: Sweeps, features: bool = True) -> tuple[Any, Tensor, Any]:
        """What :meth:`forward` returns, by sweeps; without ``features`` none of edges."""
        one_hot = torch.nn.functional.one_hot(sweeps.species, self.spec.num_species)
        node = self.embedding(one_hot.to(self.embedding.weight))
        is_local = self.config.environment is not None
        messages = self._environment if is_local else self._pairs
        (edge,) = sweeps.edges(lambda p: (self.edge_basis(messages(p).graph.length),))
        update: Any
        for n, update in enumerate(self.node_updates):
            node = update.sweep(sweeps, messages, node, edge)
            for update in self.edge_updates[n : n + 1]:
                edge = update.sweep(sweeps, messages, node, edge)
        for update in self.node_products:
            node = self._product(update, sweeps, node)

        def blocks(piece: Piece) -> tuple[Tensor, ...]:
            pairs, of_atoms = self._pairs(piece), piece.nodes(node)
            rows: Tensor = self.edge_basis(piece.graph.length) if is_local else piece.edges(edge)
            for pair_update in self.pair_updates:
                rows = pair_update(of_atoms, rows, pairs)
            output: Tensor = self.output(rows)
            if self.onsite_output is not None:
                onsite = self.onsite_output(of_atoms)
                output = add_to_onsite(output, onsite, pairs.frames.onsite, piece.graph.receivers)
            return (output, convert_layout(rows, self.irreps_edge, LAYOUT, "mul_ir")) if features else (output,)

        output, *of_edges = sweeps.edges(blocks)
        of_nodes = convert_layout(node, self.irreps_node, LAYOUT, "mul_ir")
        return output, of_nodes, of_edges[0] if of_edges else None

    @staticmethod
    def _product(product: nn.Module, sweeps: Sweeps, node: Tensor) -> Tensor:
        return sweeps.nodes(lambda p: product(p.nodes(node)[: p.num_own]))

    def _pairs(self, piece: Piece) -> Messages:
        return piece.once("pairs", lambda: self._messages(piece.graph, self.radial_basis))

    def _environment(self, piece: Piece) -> Messages:
        return piece.once("environment", lambda: self._near_messages(piece.graph, float(self.config.environment or 0)))

    def _near_messages(self, graph: CrystalGraph, radius: float) -> Messages:
        near = graph.within(radius)
        messages = self._messages(near, self.environment_basis)
        messages.envelope = polynomial_envelope(near.length, radius).unsqueeze(-1)
        return messages

    def _messages(self, graph: CrystalGraph, basis: GaussianBasis) -> Messages:
        edges = edge_index(graph.senders, graph.receivers, graph.num_atoms)
        frames = edge_frames(graph.e3nn_vector, self.l_max)
        messages = Messages(graph, edges, frames, basis(graph.length), self.spec.num_species)
        if self.config.cutoff_envelope is not None:
            messages.envelope = polynomial_envelope(graph.length, self.config.cutoff_envelope).unsqueeze(-1)
        return messages
