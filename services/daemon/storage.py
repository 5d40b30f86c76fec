"""The daemon's storage: the lease, the writers, what waits on disk, and what was lost, put together.

    bus -> time series, stream, latest value, bar series -> Redis, only while this daemon leads
                     '-> spool, while Redis is away

It starts no task: `live_data_ingestion` runs the writers and what is beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from services.daemon.config import IngestionConfig
from services.errors import ConfigurationError
from services.market_data.clock import Clock
from services.market_data.records import Record
from services.operations.state_dir import StateDirectory
from services.pipeline.sink import SinkState
from services.storage.bar_series_writer import BarSeriesWriter
from services.storage.client import make_client
from services.storage.entry import EntryEncoder
from services.storage.history_watch import HistoryWatch
from services.storage.latest_value_writer import LatestValueWriter
from services.storage.leadership import Leadership
from services.storage.led_times import LED_TIMES_NAME, LedTimes
from services.storage.losses import LossDeclaration
from services.storage.redis_lease import RedisLease
from services.storage.redis_sink import RedisSink
from services.storage.shard import Shard
from services.storage.spool import FOLDER, Spool
from services.storage.stream_writer import StreamWriter
from services.storage.time_series_writer import TimeSeriesWriter

STEP_DOWN_S = 1.0


class Storage:
    """Everything that writes to Redis, and may: `leadership`, `spool`, `writers`, `losses`, `history`.

    `history_lost(epoch)` is called when Redis has lost what was stored.
    """

    def __init__(
        self,
        config: IngestionConfig,
        clock: Clock,
        *,
        publish: Callable[[Record], None],
        history_lost: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._state_dir = config.state_dir
        self.shard = Shard.of(config.exchanges)
        self.leadership = Leadership(
            RedisLease(
                config.redis_url,
                state_dir=lambda: StateDirectory.instance_id(config.state_dir),
                ttl_s=config.lease_times.ttl_s,
                shard=self.shard,
            ),
            clock,
            policy=config.lease_policy,
            times=config.lease_times,
            lease_key=self.shard.lease_keys[0],
        )
        self.spool = Spool(config.state_dir / FOLDER, limit_bytes=config.spool_limit_bytes)
        self.led_times = LedTimes(config.state_dir / LED_TIMES_NAME)
        connect, encoder, channels = self.leadership.connect, EntryEncoder(), self.spool.channels
        self.time_series = TimeSeriesWriter(
            config.redis_url,
            clock=clock,
            retention_ms=config.tick_retention_ms,
            retention_by_exchange=config.tick_retention_by_exchange,
            spool=channels["time_series"],
            connect=connect,
        )
        self.stream = StreamWriter(
            config.redis_url,
            max_entries=config.stream_max_entries,
            encoder=encoder,
            probe_exchange=self.shard.probe_exchange,
            spool=channels["stream"],
            connect=connect,
        )
        self.latest = LatestValueWriter(config.redis_url, encoder=encoder, connect=connect)
        self.bar_series = BarSeriesWriter(
            config.redis_url,
            clock=clock,
            retention_ms=config.bar_retention_ms,
            retention_by_exchange=config.bar_retention_by_exchange,
            spool=channels["bar_series"],
            connect=connect,
        )
        self.time_series.led_times = self.stream.led_times = self.bar_series.led_times = self.led_times
        self.writers: tuple[RedisSink, ...] = (self.time_series, self.stream, self.latest, self.bar_series)
        self.probed: tuple[RedisSink, ...] = (self.time_series, self.stream, self.latest)
        """Those the health probe goes through; it makes no bar."""
        self.losses = LossDeclaration(
            {sink.name: sink.losses for sink in (self.time_series, self.stream, self.bar_series)},
            folder=config.state_dir / FOLDER,
            clock=clock,
            publish=publish,
            possible=lambda: self.stream.state is SinkState.READY,
        )
        self.history = HistoryWatch(config.redis_url, history_lost, may_write=self.leadership.may_write)
        self.reader = make_client(config.redis_url, name="marketd:reader")

    def check_spool(self) -> None:
        """Refuse what waits on disk of exchanges that another daemon may be writing now.

        Raises `ConfigurationError` with the ways out.
        """
        foreign = sorted(code for code in self.spool.positions() if not self.shard.covers(code))
        if self.waits_on_disk and foreign:
            raise ConfigurationError(
                f"STATE_DIR {self._state_dir} still holds records of {', '.join(foreign)}, which "
                f"--exchanges {self.shard.name} leaves out: start once as before, run python main.py spool "
                "replay, or set another STATE_DIR"
            )

    @property
    def waits_on_disk(self) -> bool:
        """Whether records wait on disk for Redis."""
        return any(channel.pending or channel.ahead for channel in self.spool.channels.values())

    def note_lease(self) -> None:
        """Remember on disk that this daemon holds the lease, if it does, before the work is taken up."""
        if self.leadership.lease is not None:
            self.led_times.take(self.leadership.lease.epoch)

    def begin_to_lead(self) -> bool:
        """Take note that this daemon writes from now on; False when the lease is gone again."""
        lease = self.leadership.lease
        if lease is None:
            return False
        if self.led_times.lead(lease.epoch):
            self.stream.overtaken_until_ms = self._clock.now_ms()
        if not self.waits_on_disk:
            self.led_times.forget_lost()
        return True

    async def end_writing(self, accepted_ms: int, end: Callable[[str], Awaitable[object]]) -> None:
        """Leave Redis to another daemon; what is unwritten stays on disk or is counted as dropped.

        `accepted_ms` is when the newest record was accepted; `end(name)` awaits the end of a task.
        """
        # What was accepted since the lease was last ours is stored by whoever leads now.
        self.led_times.lose(self.leadership.confirmed_ms, max(accepted_ms, self._clock.now_ms()))
        for writer in self.writers:
            if not writer.keeps_on_disk:
                writer.give_up("lease_lost")
        await asyncio.gather(*(writer.drain(STEP_DOWN_S) for writer in self.writers))
        for writer in self.writers:
            await end(f"sink:{writer.name}")
            writer.give_up("lease_lost")

    def retry_now(self) -> None:
        """Let every writer that waits try again at once."""
        for writer in self.writers:
            writer.retry_now()

    async def close(self) -> None:
        """Give the lease back and keep what was not declared; the writers have ended."""
        await self.leadership.release()
        await self.losses.save()
        await self.spool.close()
        await self.reader.aclose()
