"""Gets Dhan's instrument master: a given file, the copy of today, or a fresh download."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from data_migration.sources.dhan_scrip_master import ScripMaster, has_known_header
from services.errors import ConfigurationError, TemporaryError

SCRIP_MASTER_URL = "https://images.dhan.co/api-data/api-scrip-master.csv"
FRESH_S = 24 * 3_600
_TIMEOUT = aiohttp.ClientTimeout(total=180, sock_connect=10, sock_read=30)
_CHUNK_BYTES = 1 << 16
_MAX_BYTES = 500_000_000
_LINES_PER_UPDATE = 4_096
_NAME = "dhan-scrip-master.csv"
_HINT = "Give a file with --dhan-scrip-master, or leave Dhan out with --without-dhan."


async def obtain(cache_dir: Path, console: Console, *, url: str = SCRIP_MASTER_URL) -> Path:
    """Return the path of a master not older than 24 hours, downloading it when needed.

    Raises `TemporaryError` when it cannot be downloaded; a half of a file is never left behind.
    """
    path = cache_dir / _NAME
    age_s = _age_s(path)
    if age_s is not None and 0 <= age_s < FRESH_S:
        return path
    older = "" if age_s is None else f" An older copy is at {path}."
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        _make_private(cache_dir)
        await _download(url, part, console)
        if not _is_scrip_master(part):
            raise TemporaryError(f"{url} answers with something else than the scrip master. {_HINT}{older}")
        part.replace(path)
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        raise TemporaryError(f"{url} cannot be downloaded ({reason}). {_HINT}{older}") from error
    except OSError as error:
        raise ConfigurationError(f"{cache_dir} cannot be written: {error.strerror}. {_HINT}") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def read(path: Path, console: Console) -> ScripMaster:
    """Return the master in a file, with a progress bar where `console` is a terminal.

    Raises `ConfigurationError` when the file cannot be read or is something else.
    """
    try:
        size = path.stat().st_size
        with (
            path.open(encoding="utf-8", errors="replace", newline="") as file,
            _progress(console) as progress,
        ):
            task = progress.add_task("reading Dhan's scrip master", total=size)

            def lines() -> Iterator[str]:
                done = 0
                for number, line in enumerate(file, start=1):
                    done += len(line)
                    if number % _LINES_PER_UPDATE == 0:
                        progress.update(task, completed=done)
                    # PostgreSQL takes no NUL in a text, and no vendor means one.
                    yield line.replace("\0", "")
                progress.update(task, completed=size)

            return ScripMaster.read(lines())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _age_s(path: Path) -> float | None:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _is_scrip_master(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return has_known_header(file.readline())


async def _download(url: str, part: Path, console: Console) -> None:
    async with (
        aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True) as session,
        session.get(url, raise_for_status=True) as answer,
    ):
        with part.open("wb") as file, _progress(console) as progress:
            task = progress.add_task("downloading Dhan's scrip master", total=answer.content_length)
            written = 0
            async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                written += len(chunk)
                if written > _MAX_BYTES:
                    raise TemporaryError(f"{url} sends more than {_MAX_BYTES} bytes. {_HINT}")
                file.write(chunk)
                progress.update(task, completed=written)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
