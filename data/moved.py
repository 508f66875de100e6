"""Modules that had another name in the version before: they warn, and go with the next one."""

import importlib
import warnings
from collections.abc import Callable


def moved(old: str, new: str) -> Callable[[str], object]:
    """The `__getattr__` of the module `old`, whose contents are in `new` now."""
    warnings.warn(f"{old} is now {new}, and goes with the next version", FutureWarning, stacklevel=3)
    return lambda name: getattr(importlib.import_module(new), name)
