"""The models: stage 1 (covariant network), stage 2 (graph Transformer), and their cascade."""

from hamfast.models.cascade import Cascade, CascadeOutput
from hamfast.models.covariant import CovariantConfig, CovariantNetwork
from hamfast.models.normalization import TargetNormalization
from hamfast.models.transformer import RefinementTransformer, TransformerConfig

__all__ = [
    "Cascade",
    "CascadeOutput",
    "CovariantConfig",
    "CovariantNetwork",
    "RefinementTransformer",
    "TargetNormalization",
    "TransformerConfig",
]
