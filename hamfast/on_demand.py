"""Names of a package that are imported when they are first asked for.

Torch, and what imports it, takes seconds to load. Much of hamfast can do without it.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def on_demand(package: str, where: Mapping[str, str]) -> Callable[[str], Any]:
    """Makes the ``__getattr__`` of a package.

    Args:
        package: its name.
        where: for each name, the module that has it.
    """

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(where[name]), name)

    return get
