"""The settings of both stages: each name, default, limit and meaning, in this one place.

The models read these dataclasses. The training configuration has them as its sections ``stage1``
and ``stage2``, checks the limits with pydantic and prints the descriptions. Made directly, a
dataclass checks nothing. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from hamfast.setting_types import HIGHEST_L, WIDEST, HiddenIrreps, Real, Whole

FREEZE_STAGE1 = True
"""Stage 2's loss does not reach stage 1."""

ENVIRONMENT = 3.6
"""Angstrom: the radius of an atom's environment in the closed-form shift."""

_CHECKS = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class CovariantConfig:
    """Settings of stage 1; the defaults are DeepH-E3's for new data. Lengths are in angstrom."""

    __pydantic_config__: ClassVar[ConfigDict] = _CHECKS

    irreps_mid: Annotated[HiddenIrreps, Field(description="irreps of hidden features")] = "64x0e+32x1o+16x2e+8x3o+8x4e"
    l_max: Annotated[Whole, Field(ge=0, le=8, description="highest l of the edge's spherical harmonics")] = 4
    num_blocks: Annotated[Whole, Field(ge=1, le=100, description="rounds of node and edge updates")] = 3
    cutoff: Annotated[
        Real, Field(gt=0, le=1000, description="angstrom, end of the radial basis (all pairs of H are kept)")
    ] = 7.2
    num_basis: Annotated[Whole, Field(ge=2, le=WIDEST, description="Gaussians of the radial basis")] = 128
    radial_hidden: Annotated[Whole, Field(ge=1, le=WIDEST, description="width of the radial networks")] = 64
    edge_basis_stop: Annotated[
        Real, Field(gt=0, le=1000, description="angstrom, range of the Gaussians that start edge features")
    ] = 6.0
    embed_dim: Annotated[
        Whole, Field(ge=2, le=WIDEST, description="scalar channels that nodes and edges start with")
    ] = 64
    cutoff_envelope: Annotated[
        Real | None, Field(gt=0, le=1000, description="angstrom, messages fade to zero here; null: no envelope")
    ] = None
    environment: Annotated[
        Real | None,
        Field(
            gt=0,
            le=1000,
            description="angstrom, atoms see their neighbours up to here, and nothing else reaches them; null: all pairs of H",
        ),
    ] = None
    node_products: Annotated[
        Whole, Field(ge=0, le=10, description="with an environment: products of atoms' features with themselves")
    ] = 0
    product_channels: Annotated[Whole, Field(ge=1, le=WIDEST, description="channels per irrep of these products")] = 8
    pair_blocks: Annotated[
        Whole, Field(ge=1, le=100, description="with an environment: updates of all pairs, after those of the atoms")
    ] = 1


@dataclass(frozen=True)
class TransformerConfig:
    """Settings of stage 2. Lengths are in angstrom."""

    __pydantic_config__: ClassVar[ConfigDict] = _CHECKS

    kind: Annotated[
        Literal["frames", "gradients", "plain"],
        Field(
            description="frames: exactly covariant, in the frames of the bonds; gradients: so, too, by gradients of "
            "invariants; plain: the paper's, which is not"
        ),
    ] = "frames"
    irreps: Annotated[HiddenIrreps, Field(description="irreps of the features, of kinds frames and gradients")] = (
        "32x0e+16x1o+8x2e+4x3o+4x4e"
    )
    environment: Annotated[
        Real | None,
        Field(
            gt=0,
            le=1000,
            description="angstrom, atoms attend to neighbours up to here, of kinds frames and gradients; null: all",
        ),
    ] = None
    hidden: Annotated[Whole, Field(ge=1, le=WIDEST, description="width")] = 128
    num_blocks: Annotated[Whole, Field(ge=1, le=100, description="Transformer blocks")] = 3
    num_heads: Annotated[Whole, Field(ge=1, le=WIDEST, description="attention heads; divides hidden")] = 4
    l_max: Annotated[
        Whole, Field(ge=0, le=HIGHEST_L, description="highest l of the harmonics that enter as numbers")
    ] = 4
    num_basis: Annotated[Whole, Field(ge=2, le=WIDEST, description="Gaussians of the length")] = 64
    cutoff: Annotated[Real, Field(gt=0, le=1000, description="angstrom, end of these Gaussians")] = 8.0
    ffn_factor: Annotated[
        Whole, Field(ge=1, le=1024, description="width of the feed-forward network in units of hidden")
    ] = 2
    score_clip: Annotated[Real, Field(gt=0, le=1e6, description="attention scores are clipped to +- this")] = 5.0


def check_heads(settings: TransformerConfig) -> TransformerConfig:
    """The settings themselves.

    Raises:
        ValueError: the heads do not divide the width.
    """
    if settings.hidden % settings.num_heads:
        raise ValueError(f"hidden = {settings.hidden} is not a multiple of num_heads = {settings.num_heads}")
    return settings
