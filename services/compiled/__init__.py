"""The hottest path in compiled form, where it was built; without it everything runs as Python, with equal results.

Each module here does what a Python function elsewhere does, for the usual case, and leaves the rest to it. They
keep no state of their own: what they read and write are the slots of the same Python objects. `make setup`
builds them where a C compiler and Python's headers are; `MARKETD_COMPILED=0` leaves them unused.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

WANTED = os.environ.get("MARKETD_COMPILED", "1") != "0"


def load(name: str) -> ModuleType | None:
    """Return a compiled module, None where it is not built or not wanted."""
    if not WANTED:
        return None
    try:
        return importlib.import_module(f"services.compiled.{name}")
    except ImportError:
        return None
