"""Ready configurations: one for each published database, and a default for new data."""

from __future__ import annotations

from importlib import resources

from hamfast.errors import HamfastError
from hamfast.placeholder import DATA_FOLDER
from hamfast.training.config_file import yaml_text


def preset_names() -> list[str]:
    """The names of the ready configurations, sorted."""
    return sorted(f.name.removesuffix(".yaml") for f in resources.files(__name__).iterdir() if f.name.endswith(".yaml"))


def preset_text(name: str, root: str = DATA_FOLDER) -> str:
    """The YAML of a ready configuration with its data folder filled in.

    Raises:
        HamfastError: there is no such configuration.
    """
    if name not in preset_names():
        raise HamfastError(f"preset: expected one of {', '.join(preset_names())}, found {name!r}")
    text = (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
    return text.replace(DATA_FOLDER, yaml_text(root))
