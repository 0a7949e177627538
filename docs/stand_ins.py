"""Stand-ins for torch and other large packages, with which hamfast can be imported for its
docstrings.

Every name in them is a class: it can be a base class, an annotation (also in `Tensor | None`), and
a decorator, which leaves what it decorates as it is.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Anything(type):
    """The type of stand-ins. Attributes, items and results of calls are stand-ins, too."""

    def __getattr__(cls, name):
        if name.startswith("__") or "_is_stand_in" not in vars(cls):
            raise AttributeError(name)
        made = stand_in(name, f"{cls.__module__}.{cls.__name__}")
        setattr(cls, name, made)
        return made

    def __call__(cls, *args, **keywords):
        if "_is_stand_in" not in vars(cls):  # a class of hamfast's
            return super().__call__(*args, **keywords)
        return args[0] if len(args) == 1 and callable(args[0]) else cls

    def __getitem__(cls, item):
        return cls

    def __iter__(cls):
        return iter(())

    def __len__(cls):
        return 0

    def __bool__(cls):
        return True


def stand_in(name, module):
    return _Anything(name, (), {"_is_stand_in": True, "__module__": module})


class _Module(ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = stand_in(name, self.__name__)
        setattr(self, name, made)
        return made


class _Finder(MetaPathFinder, Loader):
    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        found = any(name == package or name.startswith(f"{package}.") for package in self.packages)
        return ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


def install(packages):
    """From now on these packages, and all that is in them, are stand-ins."""
    sys.meta_path.insert(0, _Finder(tuple(packages)))
