"""Training: configuration, Lightning module, checkpoints, runs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hamfast.training.checkpoint import LoadedModel, load_model
    from hamfast.training.config import Config, config_template, load_config
    from hamfast.training.train import Run

__all__ = ["Config", "LoadedModel", "Run", "config_template", "load_config", "load_model"]

_WHERE = {
    "Config": "config",
    "LoadedModel": "checkpoint",
    "Run": "train",
    "config_template": "config",
    "load_config": "config",
    "load_model": "checkpoint",
}


def __getattr__(name):
    # On demand: to write a configuration takes neither torch nor Lightning.
    if name not in _WHERE:
        raise AttributeError(f"module 'hamfast.training' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"hamfast.training.{_WHERE[name]}"), name)
