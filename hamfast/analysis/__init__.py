"""What a physicist looks at: predictions, errors, bands, densities of states."""

from hamfast.analysis.bands import band_structures, densities_of_states
from hamfast.analysis.eigen import eigen_problem
from hamfast.analysis.equivariance import equivariance_error
from hamfast.analysis.evaluate import evaluate
from hamfast.analysis.predict import predict

__all__ = ["band_structures", "densities_of_states", "eigen_problem", "equivariance_error", "evaluate", "predict"]
