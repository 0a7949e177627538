"""Classes of models that were loaded by ``torch.package``, as NequIP's packaged models are.

Such a file brings the code of its packages along. Its classes are not those that Python imports
under the same name, so ``isinstance`` does not know them: they are known by their names.
"""

from __future__ import annotations

from typing import TypeGuard, TypeVar

T = TypeVar("T")


def _is_packaged(cls: type) -> bool:
    return cls.__module__.startswith("<torch_package_")


def _name(cls: type) -> tuple[str, str]:
    """Module and name of a class, without what marks the package before them."""
    module = cls.__module__.partition(">.")[2] if _is_packaged(cls) else cls.__module__
    return module, cls.__qualname__


def is_exactly(thing: object, cls: type) -> bool:
    """Is the thing's class this one, or the class of that name of a package?"""
    return _name(type(thing)) == _name(cls)


def is_a(thing: object, cls: type[T]) -> TypeGuard[T]:
    """``isinstance``, for classes of packages as well."""
    return isinstance(thing, cls) or any(_name(base) == _name(cls) for base in type(thing).__mro__)


_REBASED: dict[tuple[type, type], type] = {}


def rebased(cls: type, base: type) -> type:
    """The class with another last base, where that is from a package; itself where it is not.

    Args:
        cls: derived from the class of that name which Python imports. Its methods must not call
            ``super()``, which would look for them there.
    """
    if not _is_packaged(base):
        return cls
    if (cls, base) not in _REBASED:
        own = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
        _REBASED[cls, base] = type(cls.__name__, (*cls.__bases__[:-1], base), own)
    return _REBASED[cls, base]
