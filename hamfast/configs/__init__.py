"""Ready configurations: one per published database, the bundled graphene set, and a default for new data."""

from __future__ import annotations

from importlib import resources

from hamfast.errors import HamfastError
from hamfast.training.config_file import yaml_text

ROOT = "path/to/dataset"
"""What the files have in the place of the data folder."""


def preset_names() -> list[str]:
    return sorted(f.name.removesuffix(".yaml") for f in resources.files(__name__).iterdir() if f.name.endswith(".yaml"))


def preset_text(name: str, root: str = ROOT) -> str:
    """The YAML of a ready configuration with its data folder filled in.

    Raises:
        HamfastError: there is no such configuration.
    """
    if name not in preset_names():
        raise HamfastError(f"preset: expected one of {', '.join(preset_names())}, found {name!r}")
    return (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8").replace(ROOT, yaml_text(root))
