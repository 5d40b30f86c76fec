"""The hottest path compiled, where it was built; without it everything runs as Python, with equal results.

Each module here does what a Python function elsewhere does, for the usual case, and leaves the rest to it.
They keep no state of their own: what they read and write are the slots of the same Python objects.
`make setup` builds them where a C compiler and Python's headers are; `MARKETD_COMPILED=0` in the environment
leaves them unused. All of them are used or none, and only while they are built from the sources that lie
here, for this Python.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])

FOLDER = Path(__file__).resolve().parent
STAMP = ".built"
"""Says what the modules beside it were built from; written last, by `scripts/compile.py`."""
SUFFIX = EXTENSION_SUFFIXES[0]
LIBRARIES = ("picows",)
"""Those whose declarations in C may be built in."""
REMEDY = "run make setup"


class Build(NamedTuple):
    """The compiled modules there are. `problem`: there are some that cannot be used, which can be mended."""

    modules: frozenset[str] = frozenset()
    reason: str = ""
    problem: bool = False

    @property
    def used(self) -> bool:
        """Whether this process uses them; else `reason` says why it does not."""
        return bool(self.modules)

    def __str__(self) -> str:
        return "compiled" if self.used else "interpreted"

    def status(self) -> dict[str, Any]:
        """Return what `status --json` shows of it."""
        return {"used": self.used, "reason": self.reason, "remedy": REMEDY if self.problem else ""}


def names(folder: Path = FOLDER) -> list[str]:
    """Return the names of the modules that can be built."""
    return sorted(source.stem for source in folder.glob("*.pyx"))


def digest(folder: Path = FOLDER) -> str:
    """Return a fingerprint of the sources, and of the Python and the libraries that modules are built for."""
    found = hashlib.sha256(" ".join((SUFFIX, *map(_installed, LIBRARIES))).encode())
    for source in sorted((*folder.glob("*.pyx"), *folder.glob("*.pxd"))):
        found.update(source.name.encode())
        found.update(hashlib.sha256(source.read_bytes()).digest())
    return found.hexdigest()


def _installed(library: str) -> str:
    # Its version as its folder's name has it, without loading anything.
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        return library
    return " ".join(path.name for path in Path(spec.origin).parent.parent.glob(f"{library}-*.dist-info"))


def look(folder: Path = FOLDER, *, wanted: bool = True) -> Build:
    """Return what a folder holds: all modules, fit to be used, or none and why."""
    if not wanted:
        return Build(reason="turned off by MARKETD_COMPILED=0")
    wanting = names(folder)
    built = [folder / f"{name}{SUFFIX}" for name in wanting]
    try:
        stamp = (folder / STAMP).read_text(encoding="ascii").split()
    except OSError:
        if any(folder.glob("*.so")):
            return Build(reason="half built", problem=True)
        return Build(reason="not built")
    if stamp[:1] != [digest(folder)]:
        return Build(reason="built from other sources, or for another Python or picows", problem=True)
    if not all(file.is_file() for file in built):
        return Build(reason="half built", problem=True)
    try:
        for name, file in zip(wanting, built, strict=True):
            _open(name, file)
    except ImportError as error:
        return Build(reason=f"the system does not load them: {error}", problem=True)
    return Build(frozenset(wanting), "" if wanting else "there is nothing to build")


def _open(name: str, file: Path) -> None:
    """Let the system load a file without running what is in it, which may import the rest of the program."""
    spec = spec_from_file_location(f"{__name__}.{name}", file)
    if spec is None:
        raise ImportError(f"{file.name} is no module")
    module_from_spec(spec)


BUILD = look(wanted=os.environ.get("MARKETD_COMPILED", "1") != "0")
"""What this process uses, from its start to its end."""


def load(name: str) -> ModuleType | None:
    """Return a compiled module, None where it is not built, not wanted, or built from something else.

    Raises `ImportError` where a module does not fit the Python modules beside it: a defect of the sources,
    for which nothing is left installed by a build.
    """
    return importlib.import_module(f"{__name__}.{name}") if name in BUILD.modules else None


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
