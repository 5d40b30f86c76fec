"""Builds the compiled modules of `services/compiled` in place, with the Python that runs this.

Needs a C compiler, Python's headers and Cython.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("services/compiled")


def main() -> None:
    """Build every `.pyx`; says nothing unless something goes wrong."""
    modules = [
        Extension(
            ".".join(source.relative_to(ROOT).with_suffix("").parts),
            [str(source.relative_to(ROOT))],
            extra_compile_args=["-O2", "-g0"],
        )
        for source in sorted((ROOT / FOLDER).glob("*.pyx"))
    ]
    with tempfile.TemporaryDirectory(prefix="marketd-compile-") as work:
        setup(
            name="marketd-compiled",
            packages=[],
            py_modules=[],
            ext_modules=cythonize(
                modules, build_dir=work, quiet=True, compiler_directives={"language_level": 3}
            ),
            script_args=["--quiet", "build_ext", "--inplace", "--build-temp", work],
        )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
