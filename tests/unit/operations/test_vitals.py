"""What is allowed is read from the control groups, and too much use is noticed once and its end once."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from services.operations.memory import allowed_bytes, give_back, open_descriptors, rss_bytes
from services.operations.vitals import GROWN_BYTES, REST_LOOKS, Vitals

MIB = 1 << 20


def machine(folder: Path, cgroup: str, limits: dict[str, str]) -> tuple[Path, Path]:
    proc, groups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       8388608 kB\nMemFree: 1 kB\n")
    (proc / "self" / "cgroup").write_text(cgroup)
    for name, text in limits.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    groups.mkdir(exist_ok=True)
    return proc, groups


@pytest.mark.parametrize(
    ("cgroup", "limits", "allowed_mib"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "1073741824\n", "a/memory.max": "max\n"}, 1024),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "536870912\n"}, 512),
        ("0::/\n", {"memory.max": "268435456\n"}, 256),
        ("5:memory:/x\n", {"memory/x/memory.limit_in_bytes": "134217728\n"}, 128),
        ("5:memory:/x\n", {"memory/x/memory.limit_in_bytes": "9223372036854771712\n"}, 8192),
        ("0::/a\n", {}, 8192),
        ("", {}, 8192),
    ],
)
def test_the_least_of_all_limits_counts(
    tmp_path: Path, cgroup: str, limits: dict[str, str], allowed_mib: int
) -> None:
    proc, groups = machine(tmp_path, cgroup, limits)
    assert allowed_bytes(proc=proc, cgroup=groups) == allowed_mib * MIB


def test_this_process_and_this_machine_have_figures() -> None:
    assert 1 * MIB < rss_bytes() < allowed_bytes()
    assert open_descriptors() > 2


def test_pressure_is_noticed_once_and_relieved_once_with_a_margin_between() -> None:
    used = iter([60, 70, 75, 69, 66, 66, 64, 69])
    told: list[bool] = []
    vitals = Vitals(limit_bytes=100, caps={"a": 10, "b": 30}, relieve=told.append, rss=lambda: next(used))
    for _ in range(5):
        vitals.look()
    assert told == [True]
    assert vitals.figures()["memory_pressure"] is True
    for _ in range(2):
        vitals.look()
    assert told == [True, False]
    assert (vitals.pressures, vitals.budget_bytes) == (1, 40)


async def test_memory_is_given_back_once_there_may_be_some_and_not_again_before_it_has_grown() -> None:
    used, given = [100 * MIB], []

    def give_back() -> bool:
        given.append(used[0])
        used[0] -= 30 * MIB
        return True

    vitals = Vitals(limit_bytes=0, caps={}, relieve=lambda _: None, rss=lambda: used[0], give_back=give_back)
    for _ in range(REST_LOOKS):
        await vitals.tidy()
    assert not given
    await vitals.tidy()
    assert given == [100 * MIB]
    for _ in range(3 * REST_LOOKS):
        used[0] += MIB // 2
        await vitals.tidy()
    assert given == [100 * MIB]
    used[0] += GROWN_BYTES
    await vitals.tidy()
    assert len(given) == vitals.given_back == 2


def test_what_has_come_to_stay_is_kept_from_the_collector_whenever_there_is_more_than_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used, frozen = [100 * MIB], []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(used[0]))
    vitals = Vitals(limit_bytes=0, caps={}, relieve=lambda _: None, rss=lambda: used[0])
    for used_mib in (100, 100 + 15, 100 + 16, 50, 100 + 31, 100 + 32):
        used[0] = used_mib * MIB
        vitals.settle()
    assert frozen == [100 * MIB, 116 * MIB, 132 * MIB]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is resident is read from /proc")
def test_what_was_freed_among_what_is_kept_goes_back_to_the_kernel() -> None:
    # Pieces too large for Python's own pools and too small for pages of their own, every second one kept.
    kept = [bytes(20_000) for _ in range(4_000)]
    full = rss_bytes()
    del kept[:-1:2]
    for _ in range(len(kept)):
        kept.append(kept.pop(0))
    if not give_back():
        pytest.skip("this machine's C library gives nothing back")
    assert rss_bytes() < full - 10 * MIB
    assert kept
