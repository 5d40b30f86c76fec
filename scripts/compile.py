"""Builds the compiled modules of `services/compiled` with the Python that runs this. Part of the set-up.

Needs a C compiler, Python's headers, and what requirements-build.txt names. Where something is missing, or
compiling fails, it says so in one line and leaves no module: everything runs without them. All modules are
built apart, put in place together, and tried by importing the daemon; `.built` beside them says from what.
`--is-done` only tells whether there is something to do. `--strict`: exit code 1 unless they are built.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CACHE = ROOT / ".cache"
LOG = CACHE / "compile.log"
PACKAGE = Path("services/compiled")
AS_PYTHON = "the path of a tick runs as Python"
INSTALL = (
    "for the faster, compiled one install it (Debian: apt-get install gcc python3-dev), then run make setup"
)
TRIAL = (
    "import services.live_data_ingestion\n"
    "from services import compiled\n"
    "for name in compiled.names():\n"
    "    if compiled.load(name) is None:\n"
    "        raise SystemExit(f'{name} is not used: {compiled.BUILD.reason}')\n"
)


def main(arguments: list[str]) -> int:
    """Build what is to be built; return the exit code."""
    if arguments[:1] == ["--into"]:
        compile_into(Path(arguments[1]))
        return 0
    if not any((ROOT / PACKAGE).glob("*.pyx")):
        return 0
    wanted, missing = fingerprint(), what_is_missing()
    if arguments == ["--is-done"]:
        cannot = (missing or failed_before(wanted)) and not any((ROOT / PACKAGE).glob("*.so"))
        return 0 if cannot or stamped() == wanted else 1
    try:
        if stamped() != wanted:
            clear()
            CACHE.mkdir(exist_ok=True)
            if missing:
                say(f"{AS_PYTHON}: there is no {missing}; {INSTALL}")
            else:
                build(wanted)
    except OSError as error:
        say(f"{AS_PYTHON}: the compiled one cannot be written ({error}); mend that, then run make setup")
    return 1 if "--strict" in arguments and stamped() != wanted else 0


def say(sentence: str) -> None:
    """Print a line of progress."""
    print(f"marketd: {sentence}", flush=True)


# ---- is there anything to do? -----------------------------------------------------------------------


def fingerprint() -> list[str]:
    """Return what `load` compares, and what else modules are made from."""
    from services.compiled import digest

    others = hashlib.sha256()
    for path in (Path(__file__), ROOT / "requirements-build.txt"):
        others.update(path.read_bytes() if path.exists() else b"")
    return [digest(), others.hexdigest()]


def stamped() -> list[str] | None:
    """Return the fingerprint of the modules that are in place, None where they are not complete."""
    from services.compiled import FOLDER, STAMP, look

    # A clone that was copied to another machine may hold modules that cannot be loaded there.
    return (FOLDER / STAMP).read_text(encoding="ascii").split() if look().used else None


def failed_before(wanted: list[str]) -> bool:
    """Tell whether just these sources were tried without success; they are not tried at every make."""
    try:
        with LOG.open(encoding="utf-8", errors="replace") as log:
            return log.readline().split() == wanted
    except OSError:
        return False


def compiler() -> str | None:
    """Return the C compiler to use: that of `CC`, the one Python was built with, or what there is."""
    for command in (os.environ.get("CC"), sysconfig.get_config_var("CC"), "cc", "gcc", "clang"):
        words = shlex.split(command or "")
        if words and shutil.which(words[0]):
            return command
    return None


def what_is_missing() -> str | None:
    """Return what this machine lacks for compiling."""
    if compiler() is None:
        return "C compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return f"Python.h of Python {sysconfig.get_python_version()}"
    return None


# ---- building ---------------------------------------------------------------------------------------


def build(wanted: list[str]) -> None:
    """Build apart, put in place, try; take away again what does not work."""
    began_s = time.monotonic()
    say("compiling the path of a tick")
    for left_over in CACHE.glob("compile-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="compile-", dir=CACHE) as folder:
        done = run([sys.executable, __file__, "--into", folder], CC=compiler() or "cc")
        if done.returncode == 0:
            put_in_place(Path(folder) / "lib" / PACKAGE, wanted)
            done = run([sys.executable, "-c", TRIAL], MARKETD_COMPILED="1")
    if done.returncode != 0:
        clear()
        LOG.write_text(f"{' '.join(wanted)}\n{done.stdout}", encoding="utf-8")
        log = LOG.relative_to(ROOT)
        say(f"{AS_PYTHON}: compiling it failed, see {log} (without that file it is tried again)")
        return
    LOG.unlink(missing_ok=True)
    say(f"compiled in {time.monotonic() - began_s:.0f} s")


def run(command: list[str], **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's folder; return its output, errors among it."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def compile_into(folder: Path) -> None:
    """Compile every module into `folder`, several at once."""
    from Cython.Build import cythonize
    from setuptools import Extension, setup

    os.chdir(ROOT)
    at_once = os.cpu_count() or 1
    modules = [
        Extension(".".join(source.with_suffix("").parts), [str(source)], extra_compile_args=["-O2", "-g0"])
        for source in sorted(PACKAGE.glob("*.pyx"))
    ]
    made = cythonize(
        modules,
        build_dir=str(folder / "c"),
        nthreads=min(at_once, len(modules)),
        quiet=True,
        compiler_directives={"language_level": 3},
    )
    setup(
        name="marketd-compiled",
        packages=[],
        py_modules=[],
        ext_modules=made,
        script_args=[
            *("--quiet", "build_ext", "--parallel", str(at_once)),
            *("--build-temp", str(folder / "temp"), "--build-lib", str(folder / "lib")),
        ],
    )


def put_in_place(made: Path, wanted: list[str]) -> None:
    """Put new modules where they are used. A running daemon keeps the files it has loaded."""
    from services.compiled import FOLDER, STAMP, SUFFIX, names

    clear()
    for name in names():
        (made / f"{name}{SUFFIX}").replace(FOLDER / f"{name}{SUFFIX}")
    new = FOLDER / f"{STAMP}.new"
    new.write_text("\n".join(wanted) + "\n", encoding="ascii")
    new.replace(FOLDER / STAMP)


def clear() -> None:
    """Take away every module, whichever Python it was built for."""
    from services.compiled import FOLDER, STAMP

    (FOLDER / STAMP).unlink(missing_ok=True)
    for module in FOLDER.glob("*.so"):
        module.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
