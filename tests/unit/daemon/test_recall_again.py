"""Reading where the last leader stopped, while Redis refuses to be written: the long part is done once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from services.daemon import recall as module
from services.daemon.recall import Recall
from services.errors import StorageError

BAR = SimpleNamespace(type="bar")


class FakeBarRecall:
    runs: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, *_: object) -> None: ...

    async def run(self, positions: dict[str, Any], instruments: object, newest_ms: object) -> Any:
        self.runs.append(positions)
        return SimpleNamespace(said=[BAR])


class Rig:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.positions: dict[str, tuple[int, int]] = {"NSE": (1_000, 1), "probe": (1_000, 0)}
        self.refusals = 0
        self.begun = 0
        self.offered: list[object] = []
        FakeBarRecall.runs = []

        async def positions_of(_client: object, _names: object, *_key: object) -> dict[str, tuple[int, int]]:
            return dict(self.positions)

        async def nothing(*_: object) -> dict[str, Any]:
            return {}

        async def close() -> None: ...

        monkeypatch.setattr(module, "BarRecall", FakeBarRecall)
        monkeypatch.setattr(module, "last_positions", positions_of)
        monkeypatch.setattr(module, "last_ticks", nothing)
        monkeypatch.setattr(module, "newest_in_streams", nothing)
        monkeypatch.setattr(module, "make_client", lambda _url: SimpleNamespace(aclose=close))
        ignore = SimpleNamespace(
            seed=lambda _: None,
            remember=lambda _: None,
            seed_positions=lambda _: None,
            resume_after=lambda *_: None,
        )
        storage = SimpleNamespace(
            latest=ignore,
            bar_series=SimpleNamespace(offer=self.offered.append),
            shard=SimpleNamespace(probe_exchange="probe"),
            spool=SimpleNamespace(positions=dict, newest_ticks=nothing),
            history=SimpleNamespace(start=self._start_history),
        )
        stages: Any = SimpleNamespace(
            storage=storage,
            flow=SimpleNamespace(sequencer=ignore),
            broadcast=ignore,
            routing=SimpleNamespace(providers=ignore),
            bars=SimpleNamespace(begin=self._begin),
            grid=None,
        )
        self.recall = Recall("redis://127.0.0.1:1/0", stages)

    def _begin(self) -> None:
        self.begun += 1

    async def _start_history(self, _client: object) -> str:
        if self.refusals:
            self.refusals -= 1
            raise StorageError("Redis is out of memory")
        return "epoch"

    async def run(self) -> str:
        mapping: Any = SimpleNamespace(instrument="NSE:RELIANCE", exchange="NSE")
        snapshot: Any = SimpleNamespace(mappings=(mapping,))
        return await self.recall.run(snapshot, {mapping.instrument: mapping})


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


async def test_what_was_read_is_kept_while_redis_refuses_to_be_written(rig: Rig) -> None:
    rig.refusals = 2
    for _ in range(2):
        with pytest.raises(StorageError, match="out of memory"):
            await rig.run()
    assert await rig.run() == "epoch"
    assert len(FakeBarRecall.runs) == rig.begun == 1
    assert rig.offered == [BAR]


async def test_what_another_wrote_meanwhile_is_read(rig: Rig) -> None:
    rig.refusals = 1
    with pytest.raises(StorageError):
        await rig.run()
    rig.positions["NSE"] = (2_000, 0)
    await rig.run()
    assert [run["NSE"] for run in FakeBarRecall.runs] == [(1_000, 1), (2_000, 0)]
    assert rig.begun == 2


async def test_once_data_flows_the_next_time_reads_anew(rig: Rig) -> None:
    await rig.run()
    rig.recall.used()
    await rig.run()
    assert rig.begun == len(FakeBarRecall.runs) == 2
