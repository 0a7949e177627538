"""Training: configuration, Lightning module, checkpoints, runs."""

from typing import TYPE_CHECKING

from hamfast.on_demand import on_demand

if TYPE_CHECKING:
    from hamfast.training.checkpoint import LoadedModel, load_model
    from hamfast.training.config import Config, config_template, load_config
    from hamfast.training.train import Run

__all__ = ["Config", "LoadedModel", "Run", "config_template", "load_config", "load_model"]

# To write a configuration takes neither torch nor Lightning.
__getattr__ = on_demand(
    __name__,
    {
        "Config": "hamfast.training.config",
        "LoadedModel": "hamfast.training.checkpoint",
        "Run": "hamfast.training.train",
        "config_template": "hamfast.training.config",
        "load_config": "hamfast.training.config",
        "load_model": "hamfast.training.checkpoint",
    },
)
