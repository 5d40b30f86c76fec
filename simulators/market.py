"""The simulated market: what every instrument trades at, and what each next tick is.

Stands behind all simulators; two of them may share one market, so that the same share has the same
price at both vendors. Knows no wire and no sockets. Prices are whole numbers of the smallest decimal
unit inside, so that no tick is ever off its grid by floating-point error.

Two ways to move: a random walk on the tick grid (seeded, the same on every machine), and identity
mode, where price = base + seq x tick size and the quantity follows from seq, so that a store can be
checked value by value.
"""

from __future__ import annotations

import zlib
from decimal import Decimal
from enum import Enum
from math import isfinite

import msgspec

_MULTIPLIER = 6364136223846793005
_INCREMENT = 1442695040888963407
_MASK = (1 << 64) - 1
_TYPICAL_STEP = 4e-5
"""Half the largest step of the walk, as a part of the price; at least one tick."""
DEPTH_LEVELS = 5
_KEPT_MINUTES = 3_000
"""Minutes of live trading an instrument remembers for the vendors' charts: two days."""
_MINIMUM_PRICE_TICKS = DEPTH_LEVELS + 1


class Kind(str, Enum):
    """What an instrument is; decides which fields its packets carry."""

    EQUITY = "equity"
    ETF = "etf"
    INDEX = "index"
    FUTURE = "future"
    OPTION = "option"
    FX = "fx"
    CRYPTO = "crypto"


class InstrumentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an instrument before trading starts.

    `name` is free (`NSE:RELIANCE`); two simulators that use the same name in one market see the same
    instrument. `price` and `tick` are decimals as text, `day_volume` what was traded before the start,
    `rolling_volume` the 24 h amount of a crypto pair in quote currency.
    """

    name: str
    kind: Kind = Kind.EQUITY
    price: str = "100.00"
    tick: str = "0.05"
    day_volume: int = 100_000
    lot: int = 1
    oi: int = 0
    rolling_volume: int = 0


class Tick(msgspec.Struct, gc=False):
    """One step of one instrument. `event_ms` is UTC; `quantity` was traded in this step.

    `volume` is cumulative since the start of the day. `price` is the double nearest to the decimal that
    is meant; `decimals` says how many of its digits are meant.
    """

    seq: int
    price: float
    decimals: int
    quantity: int
    volume: int
    event_ms: int
    fault: str | None = None

    @property
    def price_text(self) -> str:
        """The price as the exact decimal that is meant; `nan`, `inf` or `-inf` for a damaged one."""
        return exact_text(self.price, self.decimals)


def exact_text(price: float, decimals: int) -> str:
    """Return the decimal a price stands for, with `decimals` digits where it has no more than that."""
    if price != price or price in (float("inf"), float("-inf")):
        return str(price)
    text = f"{price:.{decimals}f}"
    return text if float(text) == price else repr(price)


class Instrument:
    """The running state of one instrument. All `_units` are whole multiples of 10**-decimals."""

    __slots__ = (
        "_identity",
        "_random",
        "_scale",
        "_stride",
        "_turnover_units",
        "base_units",
        "began_minute",
        "decimals",
        "high_units",
        "kind",
        "last_event_ms",
        "last_quantity",
        "lot",
        "low_units",
        "minutes",
        "oi",
        "oi_high",
        "oi_low",
        "open_units",
        "past",
        "previous_close_units",
        "previous_oi",
        "price_units",
        "rolling_volume",
        "seq",
        "spec",
        "tick_units",
        "volume",
    )

    def __init__(self, spec: InstrumentSpec, *, seed: int = 1, identity: bool = False) -> None:
        price, tick = Decimal(spec.price), Decimal(spec.tick)
        if price <= 0 or tick <= 0:
            raise ValueError(f"{spec.name}: price and tick must be greater than zero")
        exponent = min(price.normalize().as_tuple().exponent, tick.normalize().as_tuple().exponent)
        self.decimals = max(2, -int(exponent))
        self._scale: int = 10**self.decimals
        self.tick_units = int(tick * self._scale)
        self.base_units = int(price * self._scale)
        self._stride = max(1, round(self.base_units * _TYPICAL_STEP / self.tick_units))
        self.spec = spec
        self.kind = spec.kind
        self.lot = spec.lot
        self._identity = identity
        self._random = zlib.crc32(f"{seed}:{spec.name}".encode()) or 1
        self.seq = 0
        self.price_units = self.open_units = self.high_units = self.low_units = self.base_units
        self.previous_close_units = self.base_units
        if not identity:
            self.previous_close_units += (self._draw(41) - 20) * self._stride * 4 * self.tick_units
            self.previous_close_units = max(self.previous_close_units, self.tick_units)
        self.volume = 0 if spec.kind in (Kind.INDEX, Kind.FX) else spec.day_volume
        self._turnover_units = self.volume * self.price_units
        self.rolling_volume = spec.rolling_volume
        self.oi = self.oi_high = self.oi_low = self.previous_oi = spec.oi
        self.last_event_ms = 0
        self.last_quantity = 0
        self.began_minute: int | None = None
        """The minute of the first tick, or the one in which somebody asked for the past before it."""
        self.past: object = None
        """Kept here for `simulators.past`."""
        self.minutes: dict[int, list[int]] = {}
        """What was traded in each minute of late: open, high, low, close in units, and the volume."""

    def _draw(self, below: int) -> int:
        self._random = (self._random * _MULTIPLIER + _INCREMENT) & _MASK
        return (self._random >> 33) % below

    def value(self, units: int) -> float:
        """Return units as the double nearest to the decimal."""
        return units / self._scale

    @property
    def price(self) -> float:
        """The last price."""
        return self.price_units / self._scale

    @property
    def tick_size(self) -> float:
        """The smallest price step."""
        return self.tick_units / self._scale

    @property
    def stride(self) -> int:
        """How many ticks a usual step is."""
        return self._stride

    @property
    def average_price(self) -> float:
        """The volume-weighted average price of the day; the last price where nothing is traded."""
        if not self.volume:
            return self.price
        return self._turnover_units / (self.volume * self._scale)

    @property
    def trades(self) -> bool:
        """Whether the instrument has a volume at all (an index and an exchange rate have none)."""
        return self.kind not in (Kind.INDEX, Kind.FX)

    def step(self, event_ms: int) -> Tick:
        """Make the next tick: a random step, or in identity mode the next price of the sequence."""
        if self._identity:
            units = self.base_units + (self.seq + 1) * self.tick_units
            quantity = (1 + (self.seq + 1) % 97) * self.lot
        else:
            move = self._draw(4 * self._stride + 1) - 2 * self._stride
            units = self.price_units + move * self.tick_units
            # A gentle pull keeps a long demo within a few per cent of where it began.
            drift = units - self.base_units
            if drift and abs(drift) * 40 > self.base_units and self._draw(4) == 0:
                units += (-1 if drift > 0 else 1) * self._stride * self.tick_units
            units = max(units, _MINIMUM_PRICE_TICKS * self.tick_units)
            quantity = (1 + self._draw(50)) * self.lot
        return self._trade(units, self.value(units), quantity, event_ms)

    def trade(
        self,
        event_ms: int,
        *,
        price: float | None = None,
        quantity: int | None = None,
        volume: int | None = None,
    ) -> Tick:
        """Make a tick with this price (unchanged for None; it may lie off the grid) and quantity (or none).

        `volume` sets the cumulative volume after the tick, as at a new day or after a correction.
        """
        if volume is not None and self.trades:
            self.volume = volume - (quantity or 0)
        wanted = self.price if price is None else price
        # A damaged price goes out once; the market itself stays where it was.
        units = round(wanted * self._scale) if isfinite(wanted) and wanted > 0 else self.price_units
        return self._trade(units, wanted, quantity or 0, event_ms)

    def _trade(self, units: int, price: float, quantity: int, event_ms: int) -> Tick:
        self.seq += 1
        self.price_units = units
        if units > self.high_units:
            self.high_units = units
        elif units < self.low_units:
            self.low_units = units
        if self.trades:
            self.volume += quantity
            self._turnover_units += quantity * units
        else:
            quantity = 0
        if self.spec.oi:
            self._move_oi()
        if self.rolling_volume:
            self._roll_volume()
        self.last_event_ms = event_ms
        self.last_quantity = quantity
        self._note_minute(units, quantity, event_ms // 60_000)
        return Tick(self.seq, price, self.decimals, quantity, self.volume, event_ms)

    def _note_minute(self, units: int, quantity: int, minute: int) -> None:
        bar = self.minutes.get(minute)
        if bar is None:
            if self.began_minute is None:
                self.began_minute = minute
            self.minutes[minute] = [units, units, units, units, quantity]
            if len(self.minutes) > _KEPT_MINUTES:
                del self.minutes[next(iter(self.minutes))]
            return
        if units > bar[1]:
            bar[1] = units
        elif units < bar[2]:
            bar[2] = units
        bar[3] = units
        bar[4] += quantity

    def last_tick(self, event_ms: int) -> Tick:
        """Return what is known now, as a snapshot: nothing new is traded."""
        return Tick(self.seq, self.price, self.decimals, self.last_quantity, self.volume, event_ms)

    def _move_oi(self) -> None:
        self.oi = max(0, self.oi + (self.seq % 5 - 2) * self.lot)
        self.oi_high = max(self.oi_high, self.oi)
        self.oi_low = min(self.oi_low, self.oi)

    def _roll_volume(self) -> None:
        # The window moves: what fell out of it may exceed what came in, so the amount can decrease.
        change = self.rolling_volume // 10_000
        self.rolling_volume += change * 2 if self.seq % 3 else -change * 3

    def book(self, level: int) -> tuple[int, int, int, int, float, float]:
        """Return bid and ask of one level: quantities, order counts, prices. Level 0 is the best.

        A bid that would not be above zero is an empty level, all zeros.
        """
        offset = (level + 1) * self.tick_units
        seed = self.seq * 7 + level * 13
        bid_units = self.price_units - offset
        bid_quantity = (1 + seed % 53) * self.lot if bid_units > 0 else 0
        ask_quantity = (1 + (seed + 29) % 59) * self.lot
        return (
            bid_quantity,
            ask_quantity,
            1 + bid_quantity % 9 if bid_quantity else 0,
            1 + ask_quantity % 9,
            bid_units / self._scale if bid_quantity else 0.0,
            (self.price_units + offset) / self._scale,
        )


class Market:
    """All instruments by name, created on first use.

    `seed` makes the random walks repeatable; `identity` switches every instrument to identity mode.
    """

    def __init__(self, *, seed: int = 1, identity: bool = False) -> None:
        self.seed = seed
        self.identity = identity
        self._instruments: dict[str, Instrument] = {}

    def instrument(self, spec: InstrumentSpec) -> Instrument:
        """Return the instrument of this name, as it was first specified."""
        found = self._instruments.get(spec.name)
        if found is None:
            found = self._instruments[spec.name] = Instrument(spec, seed=self.seed, identity=self.identity)
        return found
