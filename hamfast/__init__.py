"""Fast equivariant layers, and the cascade of a covariant network and a graph Transformer that learns DFT Hamiltonians."""

from hamfast.version import __version__

__all__ = ["__version__", "accelerate", "backend", "e3nn_backend", "set_e3nn_backend", "strict"]

_WHERE = {
    "accelerate": "hamfast.nn.drop_in",
    "backend": "hamfast.ops.backend",
    "e3nn_backend": "hamfast.nn.drop_in",
    "set_e3nn_backend": "hamfast.nn.drop_in",
    "strict": "hamfast.ops.notice",
}


def __getattr__(name):
    # On demand: reading a version, or building the package, must not load torch and the kernels.
    if name not in _WHERE:
        raise AttributeError(f"module 'hamfast' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
