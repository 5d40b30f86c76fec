"""Runs `redis-cli` against the Redis of the running daemon, found through its `runtime.json`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config.settings import load_settings  # noqa: E402
from services.errors import MarketdError  # noqa: E402
from services.operations.redis_binary import bundled_program  # noqa: E402
from services.operations.state_dir import StateDirectory  # noqa: E402


def main() -> int:
    """Run redis-cli with our arguments; return its exit code."""
    try:
        folders = (load_settings().state_dir, ROOT / ".state-demo")
    except MarketdError as error:
        print(f"marketd: {error}", file=sys.stderr)
        return 78
    runtime = next((found for folder in folders if (found := StateDirectory.read_runtime(folder))), None)
    if runtime is None:
        print("marketd: no daemon is running: start one with make run, or try make demo", file=sys.stderr)
        return 75
    environment = dict(os.environ)
    program = shutil.which("redis-cli")
    if program is None:
        bundled = bundled_program()
        if bundled is None:
            print("marketd: no redis-cli is installed", file=sys.stderr)
            return 78
        program = str(bundled.server.parent / "redis-cli")
        environment = bundled.environment()
    url = urlsplit(str(runtime["redis_url"]))
    if url.scheme == "unix":
        where = ["-s", url.path]
    else:
        where = ["-h", url.hostname or "127.0.0.1", "-p", str(url.port or 6379)]
        where += ["-n", url.path.strip("/") or "0"]
        where += ["--tls"] if url.scheme == "rediss" else []
    if url.username:
        where += ["--user", unquote(url.username)]
    if url.password:
        environment["REDISCLI_AUTH"] = unquote(url.password)
    return os.spawnve(os.P_WAIT, program, [program, *where, *sys.argv[1:]], environment)


if __name__ == "__main__":
    sys.exit(main())
