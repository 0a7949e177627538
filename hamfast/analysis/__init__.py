"""What a physicist looks at: predictions, errors, bands, densities of states."""

from typing import TYPE_CHECKING

from hamfast.analysis.bands import band_structures, densities_of_states
from hamfast.analysis.eigen import eigen_problem
from hamfast.on_demand import on_demand

if TYPE_CHECKING:
    from hamfast.analysis.equivariance import equivariance_error
    from hamfast.analysis.evaluation import evaluate
    from hamfast.analysis.prediction import predict

__all__ = ["band_structures", "densities_of_states", "eigen_problem", "equivariance_error", "evaluate", "predict"]


# Bands take no torch.
__getattr__ = on_demand(
    __name__,
    {
        "equivariance_error": "hamfast.analysis.equivariance",
        "evaluate": "hamfast.analysis.evaluation",
        "predict": "hamfast.analysis.prediction",
    },
)
