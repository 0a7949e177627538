"""Fast equivariant layers, and the cascade of a covariant network and a graph Transformer that learns DFT Hamiltonians."""

from hamfast.version import __version__

__all__ = ["__version__"]
