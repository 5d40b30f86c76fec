"""The hottest path in compiled form, where it was built; without it everything runs as Python, with equal results.

Each module here does what a Python function elsewhere does, for the usual case, and leaves the rest to it. They
keep no state of their own: what they read and write are the slots of the same Python objects. `make setup`
builds them where a C compiler and Python's headers are; `MARKETD_COMPILED=0` leaves them unused.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])

WANTED = os.environ.get("MARKETD_COMPILED", "1") != "0"


def load(name: str) -> ModuleType | None:
    """Return a compiled module, None where it is not built or not wanted."""
    if not WANTED:
        return None
    try:
        return importlib.import_module(f"services.compiled.{name}")
    except ImportError:
        return None


def in_place_of(module: str, name: str) -> Callable[[_Function], _Function]:
    """Take the function `name` of a compiled module, where it is there, for the one that is decorated.

    That one stays in reach as its attribute `interpreted`.
    """

    def choose(function: _Function) -> _Function:
        compiled = getattr(load(module), name, None)
        if compiled is None:
            return function
        compiled.interpreted = function
        return cast(_Function, compiled)

    return choose
