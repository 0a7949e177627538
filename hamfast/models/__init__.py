"""The models: stage 1 (covariant network), stage 2 (graph Transformer), and their cascade."""

from typing import TYPE_CHECKING

from hamfast.models.settings import CovariantConfig, TransformerConfig
from hamfast.on_demand import on_demand

if TYPE_CHECKING:
    from hamfast.models.cascade import Cascade, CascadeOutput
    from hamfast.models.closed_form import ClosedForm
    from hamfast.models.covariant import CovariantNetwork
    from hamfast.models.normalization import TargetNormalization
    from hamfast.models.transformer import RefinementTransformer

__all__ = [
    "Cascade",
    "CascadeOutput",
    "ClosedForm",
    "CovariantConfig",
    "CovariantNetwork",
    "RefinementTransformer",
    "TargetNormalization",
    "TransformerConfig",
]

# The settings take no torch: a configuration is written without it.
__getattr__ = on_demand(
    __name__,
    {
        "Cascade": "hamfast.models.cascade",
        "CascadeOutput": "hamfast.models.cascade",
        "ClosedForm": "hamfast.models.closed_form",
        "CovariantNetwork": "hamfast.models.covariant",
        "RefinementTransformer": "hamfast.models.transformer",
        "TargetNormalization": "hamfast.models.normalization",
    },
)
