"""What flows and what does not: connections that end and begin, and what the judge of silence is to watch.

Stands between the providers' reports and the routes. Opens and closes gaps of what is served, no more.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.market_data.instruments import InstrumentMapping
from services.provider_runtime import ProviderRuntime
from services.routing.announcer import Announcer
from services.routing.book import RESUBSCRIBED, SILENT, RouteBook
from services.silence.judge import Finding, SilenceJudge

_GIVEN_UP_AS_SILENT = frozenset({"mute", "silent"})
"""Why connections end that answered and brought nothing, or did not even answer."""


class Flows:
    """Follows what flows over the routes of one book."""

    def __init__(self, book: RouteBook, announcer: Announcer, judge: SilenceJudge | None) -> None:
        self._book = book
        self._announcer = announcer
        self._judge = judge

    def lost(self, runtime: ProviderRuntime, symbols: Iterable[str], since_ms: int, reason: str) -> None:
        """Take note that a connection that carried `symbols` has ended."""
        book, code = self._book, runtime.entry.code
        for symbol in symbols:
            runtime.flowing.discard(symbol)
            mapping = runtime.instrument_of.get(symbol)
            if mapping is None:
                continue
            instrument = mapping.instrument
            self._disarm(runtime, symbol, instrument)
            watch = book.watches.get(instrument)
            if book.active.get(instrument) == code:
                book.gaps.lost(instrument, since_ms, reason)
                if reason in _GIVEN_UP_AS_SILENT:
                    # A connection that was left because it brought nothing is not waited for half a minute.
                    watch = book.watch(instrument)
                    if not watch.trouble:
                        watch.begin(Finding.MUTE.value, book.clock.monotonic_s())
            if watch is not None and (book.active.get(instrument) == code or code in watch.trials):
                for trial in watch.trials.values():
                    trial.broken()

    def restored(self, runtime: ProviderRuntime, symbols: Iterable[str], at_ms: int) -> None:
        """Take note that the data of `symbols` begins, or begins again."""
        book, symbols = self._book, list(symbols)
        code, now_ms = runtime.entry.code, book.clock.now_ms()
        runtime.normaliser.rebase(symbols)
        runtime.flowing.update(symbols)
        for symbol in symbols:
            mapping = runtime.instrument_of.get(symbol)
            if mapping is None:
                continue
            self._arm(runtime, symbol, mapping, now_ms)
            watch = book.watches.get(mapping.instrument)
            silent = watch is not None and watch.trouble in SILENT
            if book.active.get(mapping.instrument) == code and not silent:
                self._announcer.close_gap(book.gaps, mapping, at_ms)

    def gone(self, runtime: ProviderRuntime) -> None:
        """Take note that a provider is no more: nothing flows from it, and nothing is expected of it."""
        self.lost(runtime, list(runtime.flowing), self._book.clock.now_ms(), "provider_removed")
        self.let_go(runtime, list(runtime.armed))

    def let_go(self, runtime: ProviderRuntime, symbols: Iterable[str]) -> None:
        """Take note that nothing more is expected of `symbols`."""
        for symbol in symbols:
            mapping = runtime.instrument_of.get(symbol)
            if mapping is not None:
                self._disarm(runtime, symbol, mapping.instrument)

    def disarm_gone(self, runtime: ProviderRuntime, gone: Iterable[tuple[str, str]]) -> None:
        """Expect nothing more of symbols that are about to stand for nothing, or for something else."""
        for symbol, instrument in gone:
            self._disarm(runtime, symbol, instrument)

    def arm_renamed(self, runtime: ProviderRuntime, gone: Iterable[tuple[str, str]]) -> None:
        """Expect data of symbols that stand for something else by now, and whose data flows on."""
        now_ms = self._book.clock.now_ms()
        for symbol, _ in gone:
            mapping = runtime.instrument_of.get(symbol)
            if mapping is not None and symbol in runtime.flowing:
                self._arm(runtime, symbol, mapping, now_ms)

    def _arm(self, runtime: ProviderRuntime, symbol: str, mapping: InstrumentMapping, now_ms: int) -> None:
        if self._judge is not None:
            pulse = runtime.arm(symbol)
            self._judge.arm(runtime.entry.code, mapping.instrument, mapping.exchange, pulse, now_ms)

    def _disarm(self, runtime: ProviderRuntime, symbol: str, instrument: str) -> None:
        if self._judge is not None and runtime.disarm(symbol):
            self._judge.disarm(runtime.entry.code, instrument)

    # ---- routes that end ------------------------------------------------------------------------

    def flowed(self, instruments: Iterable[str]) -> set[str]:
        """Return those `instruments` whose present route brings data; for `leave_gone`."""
        active, flows = self._book.active, self._book.flows
        return {key for key in instruments if key in active and flows(key, active[key])}

    def leave_gone(self, instruments: Iterable[str], flowed: set[str], codes: set[str]) -> None:
        """Give up the routes whose mapping is gone, and open the gaps of what flowed over them.

        `instruments` are those of which any mapping has changed.
        """
        book, now_ms = self._book, self._book.clock.now_ms()
        for instrument in instruments:
            code = book.active.get(instrument)
            if code is None:
                continue
            if book.row(instrument, code) is None:
                reason = "mapping_removed" if code in codes else "provider_deactivated"
                book.leave(instrument)
                if instrument in book.candidates:
                    book.left[instrument] = (code, reason)
                if instrument in flowed:
                    book.gaps.lost(instrument, now_ms, reason)
            elif instrument in flowed and not book.flows(instrument, code):
                book.gaps.lost(instrument, now_ms, "remapped")

    def uninterested(self, instruments: Iterable[str]) -> None:
        """Give up the routes of what nobody wants any more."""
        now_ms = self._book.clock.now_ms()
        for instrument in instruments:
            code = self._book.active.get(instrument, "")
            flows = self._book.flows(instrument, code)
            self._book.leave(instrument)
            if code:
                self._book.left[instrument] = (code, RESUBSCRIBED)
            if flows:
                # What is traded until somebody wants it again is not seen.
                self._book.gaps.lost(instrument, now_ms, "not_subscribed")
