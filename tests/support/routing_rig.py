"""A `ProviderManager` over three hand-driven providers and a judge that says what a test tells it.

Every instrument is known to all three, `AAA` first. Time is a manual clock; nothing happens by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from services.base_provider import BaseMarketDataProvider, ProviderContext, ProviderState
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import ManualClock
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot, ProviderEntry
from services.market_data.records import ControlRecord, DataIngestionFormat, ProviderTick, Record
from services.pipeline.supervisor import Supervisor
from services.provider_manager import ProviderManager
from services.routing.rules import RoutingRules
from services.silence.judge import Change, Finding, Judgement, Pulse, SilenceJudge

NOW_MS = 1_790_748_968_000
CODES = ("AAA", "BBB", "CCC")
INSTRUMENTS = ("NSE:ONE", "NSE:TWO")


class HandDriven(BaseMarketDataProvider):
    """Does nothing by itself; a test sets its state and emits its ticks."""

    async def connect_websocket(self) -> None:
        return None

    async def disconnect_websocket(self) -> None:
        return None

    async def subscribe_symbols(self, symbols: Iterable[str]) -> None:
        return None

    async def unsubscribe_symbols(self, symbols: Iterable[str]) -> None:
        return None

    def message_handler(self, raw: str | bytes) -> None:
        return None


class ToldJudge(SilenceJudge):
    """Finds what the test says, of what is armed."""

    def __init__(self) -> None:
        super().__init__(MarketCalendar(always_open=True))
        self.armed: dict[tuple[str, str], Pulse] = {}
        self.found: dict[tuple[str, str], Finding] = {}
        self._news: list[Change] = []

    def say(self, provider: str, instrument: str, finding: Finding) -> None:
        if (provider, instrument) in self.armed:
            before = self.found.get((provider, instrument), Finding.PROVING)
            self.found[provider, instrument] = finding
            self._news.append(Change(provider, "NSE", instrument, before, Judgement(finding, NOW_MS, "told")))

    def arm(self, provider: str, instrument: str, exchange: str, pulse: Pulse, now_ms: int) -> None:
        self.armed[provider, instrument] = pulse
        self.found[provider, instrument] = Finding.PROVING

    def disarm(self, provider: str, instrument: str) -> None:
        assert self.armed.pop((provider, instrument), None) is not None, "it was armed"
        self.found.pop((provider, instrument), None)

    def look(self, now_ms: int, now_s: float) -> list[Change]:
        news, self._news = self._news, []
        return news

    def judgement(self, provider: str, instrument: str) -> Judgement:
        assert (provider, instrument) in self.armed, "only what is armed is asked about"
        return Judgement(self.found[provider, instrument], NOW_MS, "told")


class RoutingRig:
    """The manager, and what it published."""

    def __init__(
        self,
        *,
        instruments: Iterable[str] = INSTRUMENTS,
        rules: RoutingRules | None = None,
        fields: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.clock = ManualClock(NOW_MS)
        self.judge = ToldJudge()
        self.published: list[Record] = []
        self.supervisor = Supervisor()
        self.made: dict[str, HandDriven] = {}
        self.instruments = tuple(instruments)
        self.manager = ProviderManager(
            clock=self.clock,
            settings=dict,
            publish=self.published.append,
            supervisor=self.supervisor,
            show_reference=lambda _: None,
            factories={code: self._factory(code) for code in CODES},
            calendar=MarketCalendar(always_open=True),
            judge=self.judge,
            rules=rules,
        )
        self.router = self.manager.router
        self._fields = fields or {}
        self.manager.load(self.snapshot())
        for made in self.made.values():
            made.state = ProviderState.STREAMING

    def _factory(self, code: str) -> Any:
        kind = type(code, (HandDriven,), {"code": code})

        def make(context: ProviderContext) -> HandDriven:
            self.made[code] = kind(context)
            return self.made[code]

        return make

    def snapshot(self) -> MappingSnapshot:
        return MappingSnapshot(
            version=1,
            loaded_ms=NOW_MS,
            providers=tuple(ProviderEntry(code=code, name=code) for code in CODES),
            mappings=tuple(
                self.mapping(instrument, code, priority)
                for instrument in self.instruments
                for priority, code in enumerate(CODES, start=1)
            ),
        )

    def mapping(self, instrument: str, code: str, priority: int) -> InstrumentMapping:
        exchange, _, symbol = instrument.partition(":")
        return InstrumentMapping(
            mapping_id=priority,
            instrument=instrument,
            exchange=exchange,
            symbol=symbol,
            name=symbol,
            asset_class=AssetClass.EQUITY,
            currency="INR",
            provider_code=code,
            search_code=f"{symbol}.{code}",
            is_primary=priority == 1,
            priority=priority,
            **self._fields.get(code, {}),
        )

    def symbol(self, code: str, instrument: str) -> str:
        return f"{instrument.partition(':')[2]}.{code}"

    def flows(self, code: str, instrument: str) -> None:
        """Say that the data of an instrument begins at a provider, if it is asked for."""
        symbol = self.symbol(code, instrument)
        if symbol in self.made[code].wanted:
            self.made[code].context.connection_restored([symbol], self.clock.now_ms())

    def breaks(self, code: str, instrument: str, reason: str = "closed_1006") -> None:
        """Say that the connection that carried an instrument has ended, if it is asked for."""
        symbol = self.symbol(code, instrument)
        if symbol in self.made[code].wanted:
            self.made[code].context.connection_lost([symbol], self.clock.now_ms(), reason)

    def tick(self, code: str, instrument: str, price: float, *, lag_ms: int = 0, **fields: Any) -> None:
        """Emit a tick of now (or of `lag_ms` ago) where the provider is asked for the instrument."""
        symbol = self.symbol(code, instrument)
        if symbol not in self.made[code]._wanted:
            return
        now_ms = self.clock.now_ms()
        self.made[code].emit(
            ProviderTick(provider_symbol=symbol, price=price, event_ms=now_ms - lag_ms, **fields), now_ms
        )

    def ticks(self, instrument: str) -> list[DataIngestionFormat]:
        return [r for r in self.published if isinstance(r, DataIngestionFormat) and r.symbol == instrument]

    def controls(self, kind: str, instrument: str | None = None) -> list[ControlRecord]:
        return [
            r
            for r in self.published
            if isinstance(r, ControlRecord) and r.type == kind and instrument in (None, r.symbol)
        ]

    async def pass_s(self, seconds: float) -> None:
        """Let time pass, with a look every second."""
        while seconds > 0:
            step_s = min(1.0, seconds)
            self.clock.advance(step_s)
            seconds -= step_s
            await self.manager.look()

    def check(self) -> None:
        """Assert what always holds of what was published."""
        for instrument in self.instruments:
            self._check_order(instrument)
        for code, ledger in self.manager.ledger().items():
            assert ledger["accepted"] == ledger["passed"] + ledger["standby"], code
        ticks = [r for r in self.published if isinstance(r, DataIngestionFormat)]
        assert len(ticks) == sum(ledger["passed"] for ledger in self.manager.ledger().values())

    def _check_order(self, instrument: str) -> None:
        source: str | None = None
        stale = False
        newest_ms = 0
        switched_ms: list[int] = []
        rules = self.router.rules
        for record in (r for r in self.published if r.symbol == instrument):
            if isinstance(record, DataIngestionFormat):
                source = source or record.provider_code
                assert record.provider_code == source, "at most one source, and a change is announced"
                assert not stale, "what is stale resumes before it ticks"
                if not record.flags:
                    assert record.timestamp >= newest_ms, "no time is delivered twice"
                    newest_ms = record.timestamp
            elif record.type == "switched":
                assert record.fields["reason"], "every switch has a reason"
                assert source is None or record.fields["from_src"] == source
                source = str(record.fields["to_src"])
                assert record.provider_code == source
                if record.fields["reason"] not in ("manual", "resubscribed"):
                    switched_ms.append(record.timestamp)
            elif record.type in ("stale", "resumed"):
                assert stale is (record.type == "resumed"), "each is said once, in turn"
                assert record.fields["reason"]
                stale = record.type == "stale"
            else:
                assert record.type == "gap"
                assert int(record.fields["from"]) <= int(record.fields["to"])
        for index, last_ms in enumerate(switched_ms):
            inside = [ms for ms in switched_ms[: index + 1] if ms > last_ms - rules.window_s * 1000]
            assert len(inside) <= rules.switches_at_most, "it does not flap"
