"""The channels `quote` and `trade`: what the tick flow says of quotes and trades, told when it is news.

An outlet of the broadcast for those instruments alone whose quotes or trades somebody watches, so that the
path of all other ticks is the same as without it. Pure but for the queues of its watchers: no I/O, no clock.
"""

from __future__ import annotations

from services.data_broadcast import DataBroadcast, Publication, is_exchange_wide
from services.gateway.channel_hub import Audience, ChannelHub, SideOutlet, Topic
from services.gateway.side_messages import SideMessage
from services.market_data.records import DataIngestionFormat
from services.market_data.trades_and_quotes import QuoteUpdate, TradeUpdate, is_same_quote, quote_of, trade_of


class _View:
    """One instrument: who watches its quotes and trades, and the newest of both."""

    __slots__ = ("quote", "quotes", "trade", "trades")

    def __init__(self) -> None:
        self.quotes: Audience | None = None
        self.trades: Audience | None = None
        self.quote: QuoteUpdate | None = None
        self.trade: TradeUpdate | None = None

    def see(self, tick: DataIngestionFormat) -> None:
        """Take in a tick that is known already."""
        self.quote = quote_of(tick) or self.quote
        self.trade = trade_of(tick) or self.trade


class TickViews:
    """Fills `quote` and `trade` from a broadcast."""

    def __init__(self, broadcast: DataBroadcast, hub: ChannelHub) -> None:
        self._broadcast = broadcast
        self._hub = hub
        self._views: dict[str, _View] = {}
        self.quotes, self.trades = _Quotes(self), _Trades(self)
        hub.connect("quote", self.quotes)
        hub.connect("trade", self.trades)

    # ---- outlet of the broadcast ----------------------------------------------------------------

    def take(self, publication: Publication) -> None:
        """Tell of the quote and the trade of a tick, as far as they are news and watched."""
        tick = publication.record
        view = self._views.get(tick.symbol)
        if view is None or not isinstance(tick, DataIngestionFormat):
            return
        if view.trades is not None and (trade := trade_of(tick)) is not None:
            view.trade = trade
            view.trades.tell((tick.symbol, ""), trade_message(trade))
        if view.quotes is not None and not is_same_quote(view.quote, tick):
            quote = quote_of(tick)
            if quote is not None:
                view.quote = quote
                view.quotes.tell((tick.symbol, ""), quote_message(quote))

    def take_control(self, publication: Publication) -> None:
        """Hand a control record to those who watch what it concerns; bars are no matter of theirs."""
        record = publication.record
        if getattr(record, "type", "") == "bar":
            return
        if is_exchange_wide(record):
            prefix = f"{record.exchange}:"
            concerned = [view for symbol, view in self._views.items() if symbol.startswith(prefix)]
        else:
            found = self._views.get(record.symbol)
            concerned = [] if found is None else [found]
        outlets: dict[SideOutlet, None] = {}
        for view in concerned:
            for audience in (view.quotes, view.trades):
                outlets.update(dict.fromkeys(audience.outlets() if audience is not None else ()))
        for outlet in outlets:
            outlet.take_flow_control(publication)

    # ---- who is watched -------------------------------------------------------------------------

    def open(self, instrument: str) -> _View:
        """Return the view of an instrument, watching it if it is new."""
        view = self._views.get(instrument)
        if view is None:
            view = self._views[instrument] = _View()
            newest = self._broadcast.latest(instrument)
            if newest is not None:
                view.see(newest)
            self._broadcast.attach(self, (instrument,))
        return view

    def close(self, instrument: str) -> None:
        """Watch an instrument no longer, if nobody does."""
        view = self._views.get(instrument)
        if view is not None and view.quotes is None and view.trades is None:
            del self._views[instrument]
            self._broadcast.detach(self, (instrument,))

    def view(self, instrument: str) -> _View | None:
        """Return the view of an instrument that is watched."""
        return self._views.get(instrument)

    def audience(self, channel: str, topic: Topic) -> Audience:
        """Return who watches a topic of one of our channels."""
        return self._hub.topics("quote" if channel == "quote" else "trade")[topic]


class _Quotes:
    """The feed of the channel `quote`."""

    def __init__(self, views: TickViews) -> None:
        self._views = views

    def opened(self, topic: Topic) -> None:
        """Begin to tell of quotes."""
        self._views.open(topic[0]).quotes = self._views.audience("quote", topic)

    def closed(self, topic: Topic) -> None:
        """Tell of quotes no longer."""
        self._views.open(topic[0]).quotes = None
        self._views.close(topic[0])

    def newest(self, topic: Topic) -> SideMessage | None:
        """Return the newest quote."""
        view = self._views.view(topic[0])
        return None if view is None or view.quote is None else quote_message(view.quote)


class _Trades:
    """The feed of the channel `trade`."""

    def __init__(self, views: TickViews) -> None:
        self._views = views

    def opened(self, topic: Topic) -> None:
        """Begin to tell of trades."""
        self._views.open(topic[0]).trades = self._views.audience("trade", topic)

    def closed(self, topic: Topic) -> None:
        """Tell of trades no longer."""
        self._views.open(topic[0]).trades = None
        self._views.close(topic[0])

    def newest(self, topic: Topic) -> SideMessage | None:
        """Return the newest trade."""
        view = self._views.view(topic[0])
        return None if view is None or view.trade is None else trade_message(view.trade)


def quote_message(quote: QuoteUpdate) -> SideMessage:
    """Return a quote as a message of its channel."""
    return SideMessage("quote", quote.symbol, quote, "", quote.position_ms, quote.position_seq)


def trade_message(trade: TradeUpdate) -> SideMessage:
    """Return a trade as a message of its channel."""
    return SideMessage("trade", trade.symbol, trade, "", trade.position_ms, trade.position_seq)
