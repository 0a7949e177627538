"""What a physicist looks at: predictions, errors, bands, densities of states."""

from typing import TYPE_CHECKING

from hamfast.analysis.bands import band_structures, densities_of_states
from hamfast.analysis.eigen import eigen_problem

if TYPE_CHECKING:
    from hamfast.analysis.equivariance import equivariance_error
    from hamfast.analysis.evaluation import evaluate
    from hamfast.analysis.prediction import predict

__all__ = ["band_structures", "densities_of_states", "eigen_problem", "equivariance_error", "evaluate", "predict"]


_WITH_TORCH = {"equivariance_error": "equivariance", "evaluate": "evaluation", "predict": "prediction"}


def __getattr__(name):
    # On demand: bands take no torch.
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'hamfast.analysis' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"hamfast.analysis.{_WITH_TORCH[name]}"), name)
