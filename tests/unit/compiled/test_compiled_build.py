"""Building the compiled parts, and what is not fit to be used: a small project with the real compiler."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services import compiled
from services.compiled import BUILD, STAMP, SUFFIX, look

ROOT = Path(__file__).resolve().parents[3]
SOURCE = (
    "from services.compiled.slots cimport offset_of\n"
    "class Record:\n    __slots__ = ('price',)\n"
    "cdef Py_ssize_t AT = offset_of(Record, 'price')\n"
    "def answer(): return 42\n"
)


def why_not_here() -> str | None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        missing: str | None = importlib.import_module("compile").what_is_missing()
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return missing


MISSING = why_not_here()
with_a_compiler = pytest.mark.skipif(MISSING is not None, reason=f"there is no {MISSING}")


def make_project(folder: Path) -> Path:
    package = folder / "services" / "compiled"
    package.mkdir(parents=True)
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "compile.py", folder / "scripts")
    for name in ("__init__.py", "compiled/__init__.py", "compiled/slots.pxd"):
        shutil.copy(ROOT / "services" / name, folder / "services" / name)
    for name in ("one", "two"):
        (package / f"{name}.pyx").write_text(SOURCE, encoding="ascii")
    (folder / "services" / "live_data_ingestion.py").write_text(
        "from services.compiled import load\none = load('one')\nif one: assert one.answer() == 42\n",
        encoding="ascii",
    )
    return folder


def build(project: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "CC") if name in os.environ}
    return subprocess.run(
        [sys.executable, "scripts/compile.py", *arguments],
        cwd=project,
        env=kept | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def in_use(project: Path, **settings: str) -> str:
    program = "from services.compiled import BUILD; print(BUILD, BUILD.reason, BUILD.problem)"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=project, env=settings, capture_output=True, text=True, check=True
    ).stdout.strip()


def modules(project: Path) -> set[str]:
    return {path.name.partition(".")[0] for path in (project / "services" / "compiled").glob("*.so")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_project(tmp_path_factory.mktemp("made") / "a path with spaces")
    done = build(project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("marketd: compiling the path of a tick\nmarketd: compiled in "), done.stdout
    return project


@pytest.fixture
def project(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "project")
    return tmp_path / "project"


def package(project: Path) -> Path:
    return project / "services" / "compiled"


@pytest.mark.skipif(os.environ.get("MARKETD_COMPILED") == "0", reason="turned off by MARKETD_COMPILED=0")
@with_a_compiler
def test_where_the_path_can_be_compiled_these_tests_run_it_compiled() -> None:
    assert BUILD.used, f"{BUILD.reason}: run make setup, and see .cache/compile.log"
    assert set(BUILD.modules) == set(compiled.names())
    assert all(compiled.load(name) is not None for name in compiled.names())
    assert compiled.load("no_such_module") is None


def takers() -> list[str]:
    """Return the modules that take something compiled for their own."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "services").rglob("*.py"))
        if re.search(r"^from services\.compiled import .*(load|in_place_of)", path.read_text(), re.MULTILINE)
    ]


@pytest.mark.skipif(not BUILD.used, reason=BUILD.reason)
@pytest.mark.parametrize("name", takers())
def test_each_module_that_takes_something_compiled_may_be_the_first_to_be_imported(name: str) -> None:
    # A compiled module imports the program, and may be asked for in the middle of that.
    subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, check=True, timeout=60)


@with_a_compiler
def test_what_was_built_is_used_and_the_second_time_there_is_nothing_to_do(built: Path) -> None:
    assert in_use(built) == "compiled  False"
    assert in_use(built, MARKETD_COMPILED="0") == "interpreted turned off by MARKETD_COMPILED=0 False"
    assert build(built, "--is-done").returncode == 0
    again = build(built)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    left = {path.name for path in package(built).iterdir() if path.name != "__pycache__"}
    sources = {"__init__.py", "slots.pxd", "one.pyx", "two.pyx"}
    assert left == sources | {STAMP, f"one{SUFFIX}", f"two{SUFFIX}"}
    assert list((built / ".cache").iterdir()) == []


@with_a_compiler
@pytest.mark.parametrize("changed", ["one.pyx", "slots.pxd", "three.pyx"])
def test_modules_of_other_sources_are_not_used_until_they_are_built_anew(project: Path, changed: str) -> None:
    file = package(project) / changed
    file.write_text((file.read_text() if file.exists() else SOURCE) + "\n", encoding="ascii")
    assert in_use(project) == "interpreted built from other sources, or for another Python or picows True"
    assert build(project, "--is-done").returncode == 1
    if changed == "three.pyx":
        assert "compiled in" in build(project).stdout
        assert in_use(project) == "compiled  False"
        assert modules(project) == {"one", "two", "three"}


@with_a_compiler
@pytest.mark.parametrize("what", ["one is missing", "no stamp", "one is damaged"])
def test_all_modules_are_used_or_none(project: Path, what: str) -> None:
    file = package(project) / f"two{SUFFIX}"
    if what == "one is missing":
        file.unlink()
    elif what == "no stamp":
        (package(project) / STAMP).unlink()
    else:
        file.write_bytes(b"no module at all")
    found = in_use(project)
    assert found.startswith("interpreted ")
    assert found.endswith(" True")
    assert ("the system does not load them" if what == "one is damaged" else "half built") in found
    assert build(project, "--is-done").returncode == 1


@with_a_compiler
def test_modules_for_another_python_are_not_used(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(package(project)).used
    monkeypatch.setattr(compiled, "SUFFIX", ".cpython-399-other.so")
    assert look(package(project)).problem


@with_a_compiler
@pytest.mark.parametrize(
    ("added", "said"),
    [("def broken(:\n", "one.pyx:6"), ("AT = offset_of(Record, 'nothing')\n", "nothing")],
    ids=["does not compile", "does not fit"],
)
def test_a_build_that_fails_is_one_line_and_a_log_and_leaves_nothing(
    project: Path, added: str, said: str
) -> None:
    with (package(project) / "one.pyx").open("a", encoding="ascii") as file:
        file.write(added)
    done = build(project)
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout.splitlines()
    assert told[1:] == [
        "marketd: the path of a tick runs as Python: compiling it failed, see .cache/compile.log "
        "(without that file it is tried again)"
    ]
    log = project / ".cache" / "compile.log"
    assert said in log.read_text(encoding="utf-8")
    assert modules(project) == set()
    assert in_use(project) == "interpreted not built False"
    # It is not tried at every make, but once the log is away.
    assert build(project, "--is-done").returncode == 0
    log.unlink()
    assert build(project, "--is-done").returncode == 1
    assert build(project, "--strict").returncode == 1


def test_without_a_compiler_one_line_says_what_to_install(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    stale = package(project) / f"one{SUFFIX}"
    stale.touch()
    done = build(project, PATH=str(tmp_path), CC="")
    assert (done.returncode, done.stderr) == (0, "")
    (said,) = done.stdout.splitlines()
    assert said.startswith("marketd: the path of a tick runs as Python: there is no C compiler;")
    assert "apt-get install gcc python3-dev" in said
    # What is left of another build would only be warned of.
    assert not stale.exists()
    assert in_use(project) == "interpreted not built False"
    assert build(project, "--is-done", PATH=str(tmp_path), CC="").returncode == 0


@with_a_compiler
def test_without_pythons_headers_too(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    (fakes / "sitecustomize.py").write_text(
        "import sysconfig\nsysconfig.get_path = lambda name: '/nowhere'\n", encoding="ascii"
    )
    done = build(project, PYTHONPATH=str(fakes))
    assert (done.returncode, done.stderr) == (0, "")
    (said,) = done.stdout.splitlines()
    assert "there is no Python.h of Python 3." in said
    # A compiler that came later is found.
    assert build(project, "--is-done").returncode == 1
