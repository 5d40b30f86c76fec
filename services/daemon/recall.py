"""Where the last leader stopped: positions, newest ticks, forming bars; read when a daemon takes up the work.

Redis first, then what still waits on disk behind it. Nothing flows yet while it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.daemon.stages import Stages
from services.market_data.instruments import InstrumentMapping, MappingSnapshot
from services.market_data.records import PROBE_EXCHANGE
from services.pipeline.sequencer import Position
from services.storage.bar_recall import BarRecall
from services.storage.bootstrap import LastTick, last_positions, last_ticks, newest_in_streams
from services.storage.client import make_client
from services.storage.keys import depth_stream


class Recall:
    """Reads what was, into everything that must know it. `run` may be repeated."""

    def __init__(self, redis_url: str, stages: Stages) -> None:
        self._redis_url = redis_url
        self._storage = stages.storage
        self._sequencer = stages.flow.sequencer
        self._broadcast = stages.broadcast
        self._providers = stages.routing.providers
        self._bars = stages.bars
        self._grid = stages.grid
        self._bars_made_of: tuple[dict[str, Position], dict[str, str]] | None = None

    async def run(self, snapshot: MappingSnapshot, instruments: Mapping[str, InstrumentMapping]) -> str:
        """Recall everything; return the epoch of the key space. Raises `StorageError`."""
        client = make_client(self._redis_url)
        try:
            exchanges = sorted({mapping.exchange for mapping in snapshot.mappings})
            positions = await self._positions(client, exchanges)
            newest = await self._newest(client, exchanges, instruments)
            self._providers.seed(newest.values())
            self._broadcast.seed(newest.values())
            self._storage.latest.remember(newest.values())
            await self._recall_bars(
                client,
                {exchange: positions[exchange] for exchange in exchanges},
                {key: mapping.exchange for key, mapping in instruments.items()},
                newest,
            )
            return await self._storage.history.start(client)
        finally:
            await client.aclose()

    def used(self) -> None:
        """Say that data flows now: what was read is no longer what is."""
        self._bars_made_of = None

    async def _recall_bars(
        self,
        client: Any,
        positions: dict[str, Position],
        instruments: dict[str, str],
        newest: Mapping[str, LastTick],
    ) -> None:
        """Build the forming bars again, unless an attempt before has done so from the very same streams.

        By far the longest part: while Redis comes and goes it is not begun anew each time.
        """
        if self._bars_made_of == (positions, instruments):
            return
        self._bars_made_of = None
        recall = BarRecall(client, self._bars.begin(), self._grid, self._storage.spool)
        recalled = await recall.run(positions, instruments, newest)
        for said in recalled.said:
            # Their samples may not have been written any more; writing them again changes nothing.
            self._storage.bar_series.offer(said)
        self._bars_made_of = positions, instruments

    async def _positions(self, client: Any, exchanges: list[str]) -> dict[str, Position]:
        probes = self._storage.shard.probe_exchange
        positions = await last_positions(client, [*exchanges, probes])
        self._sequencer.resume_after(PROBE_EXCHANGE, positions.pop(probes))
        for exchange, position in positions.items():
            self._sequencer.resume_after(exchange, position)
        # Books share the order of their exchange with its ticks, so neither goes back behind the other.
        for exchange, position in (await last_positions(client, exchanges, depth_stream)).items():
            self._sequencer.resume_after(exchange, position)
        # What still waits on disk must come before anything new in its stream.
        for exchange, position in self._storage.spool.positions().items():
            self._sequencer.resume_after(exchange, position)
            positions[exchange] = max(position, positions.get(exchange, position))
        self._broadcast.seed_positions({exchange: positions[exchange] for exchange in exchanges})
        return positions

    async def _newest(
        self, client: Any, exchanges: list[str], instruments: Mapping[str, InstrumentMapping]
    ) -> dict[str, LastTick]:
        newest = await last_ticks(client, sorted(instruments))
        for instrument, entry in (await newest_in_streams(client, exchanges)).items():
            stored = newest.get(instrument)
            if instrument in instruments and (stored is None or entry.timestamp > stored.timestamp):
                newest[instrument] = entry
        # Redis knows nothing of what waits on disk; the last trade repeated must still be recognised.
        for instrument, waiting in (await self._storage.spool.newest_ticks(instruments)).items():
            stored = newest.get(instrument)
            lost = self._storage.led_times.was_lost(waiting.position_ms)
            if not lost and (stored is None or waiting.timestamp >= stored.timestamp):
                newest[instrument] = waiting
        return newest
