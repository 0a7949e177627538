"""Training: configuration, Lightning module, checkpoints, runs."""

from hamfast.training.checkpoint import LoadedModel, load_model
from hamfast.training.config import Config, config_template, load_config
from hamfast.training.train import Run

__all__ = ["Config", "LoadedModel", "Run", "config_template", "load_config", "load_model"]
