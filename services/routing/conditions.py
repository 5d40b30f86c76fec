"""How the candidates of an instrument are: from providers, trials and the judge of silence to `Health`.

Stands between what is known and the decision. What is the same for all instruments of a provider is taken
once a look.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from services.market_data.calendar import MarketCalendar
from services.market_data.instruments import InstrumentMapping
from services.routing.book import LASTS_UNTIL_DATA, REFUSED, SILENT, RouteBook, Watch
from services.routing.decision import Health, allowed
from services.silence.judge import Finding, Judgement, SilenceJudge

_JUST_NOW_MS = 1_500
"""A tick that is younger than this overtakes a finding of silence: the judge looks every two seconds."""


class _Condition(msgspec.Struct):
    usable: bool
    room: float
    refused: Mapping[str, str]


class Conditions:
    """The conditions of all providers at the last look."""

    def __init__(self, book: RouteBook, calendar: MarketCalendar, judge: SilenceJudge | None) -> None:
        self._book = book
        self._calendar = calendar
        self._judge = judge
        self._by_code: dict[str, _Condition] = {}

    def refresh(self) -> None:
        """Take the providers' conditions, which hold for all their instruments until the next look."""
        conditions = {}
        for code, runtime in self._book.runtimes.items():
            provider = runtime.provider
            capacity = provider.capacity if provider is not None else None
            taken = len(provider.wanted) if provider is not None and capacity is not None else 0
            conditions[code] = _Condition(
                usable=runtime.usable,
                room=float("inf") if capacity is None else capacity - taken,
                refused={} if provider is None else provider.refused,
            )
        self._by_code = conditions

    def take_room(self, code: str) -> None:
        """Take note that one more symbol is going to be subscribed at a provider."""
        if code in self._by_code:
            self._by_code[code].room -= 1

    def health(self, row: InstrumentMapping, watch: Watch | None, now_s: float) -> Health:
        """Return how one candidate is."""
        code = row.provider_code
        condition = self._by_code.get(code)
        if condition is None:
            return Health(code, usable=False)
        trial = watch.trials.get(code) if watch is not None else None
        return Health(
            code,
            condition.usable,
            self.trouble(row, watch),
            row.delivery or self._book.runtimes[code].delivery,
            row.allow_delayed,
            condition.room >= 1,
            trial.view(now_s) if trial is not None else None,
        )

    def trouble(self, row: InstrumentMapping, watch: Watch | None) -> str:
        """Return why a source does not deliver an instrument although its provider works; else nothing."""
        code, symbol = row.provider_code, row.provider_symbol
        condition = self._by_code.get(code)
        if condition is not None and symbol in condition.refused:
            return REFUSED
        runtime = self._book.runtimes[code]
        present = watch is not None and self._book.active.get(row.instrument) == code
        before = watch.trouble if watch is not None and present else ""
        if before in LASTS_UNTIL_DATA and symbol not in runtime.flowing:
            # It tries again, but what it lost is not back.
            return before
        judgement = self.judgement(row)
        if judgement is None:
            return ""
        finding = judgement.finding
        if not finding.is_fault:
            # Connected anew, and nothing has come yet: it is as silent as before.
            return before if before in SILENT and finding is Finding.PROVING else ""
        pulse = runtime.pulses.get(symbol)
        age_ms = self._book.clock.now_ms() - (pulse.received_ms if pulse is not None else 0)
        return "" if finding.value in SILENT and age_ms < _JUST_NOW_MS else finding.value

    def judgement(self, row: InstrumentMapping) -> Judgement | None:
        """Return what the judge of silence finds of a source; None where it does not watch it."""
        runtime = self._book.runtimes[row.provider_code]
        if self._judge is None or not runtime.is_armed(row.provider_symbol):
            return None
        return self._judge.judgement(row.provider_code, row.instrument)

    def expected(self, instrument: str) -> bool:
        """Tell whether data of an instrument is expected at all: its market is open."""
        exchange = self._book.candidates[instrument][0].exchange
        return self._calendar.in_session(exchange, self._book.clock.now_ms())

    def may_serve(self, row: InstrumentMapping) -> bool:
        """Tell whether a source may serve, as far as the freshness of its data goes."""
        position = self._book.candidates[row.instrument].index(row)
        delivery = self._book.delivery(row.instrument, row.provider_code)
        return allowed(
            Health(row.provider_code, delivery=delivery, allow_delayed=row.allow_delayed), position
        )

    def places(self, instrument: str) -> list[str]:
        """Return at which providers an instrument would take a subscription just now."""
        rows = self._book.candidates.get(instrument, ())
        if not rows:
            return []
        best = self._book.active.get(instrument) or next(
            (
                row.provider_code
                for row in rows
                if self.may_serve(row) and self._by_code[row.provider_code].usable
            ),
            rows[0].provider_code,
        )
        return list(dict.fromkeys((rows[0].provider_code, best)))
