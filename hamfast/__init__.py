"""Fast equivariant layers, and a cascade of two networks that learns DFT Hamiltonians.

The first network is covariant, and the second is a graph Transformer.
"""

from hamfast.on_demand import on_demand
from hamfast.version import __version__

__all__ = ["__version__", "accelerate", "backend", "e3nn_backend", "load", "set_e3nn_backend", "strict"]

# Reading a version, or building the package, must not load torch and the kernels.
__getattr__ = on_demand(
    __name__,
    {
        "accelerate": "hamfast.nn.drop_in",
        "backend": "hamfast.ops.backend",
        "e3nn_backend": "hamfast.nn.drop_in",
        "load": "hamfast.analysis.crystal",
        "set_e3nn_backend": "hamfast.nn.drop_in",
        "strict": "hamfast.ops.notice",
    },
)
