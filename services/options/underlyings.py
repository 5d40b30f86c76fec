"""Which instruments options may be written on, found by what people type. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from services.market_data.instruments import AssetClass, InstrumentMapping
from services.options.source import DERIVATIVES_OF, Underlying

_MAY_HAVE_OPTIONS = frozenset({AssetClass.EQUITY, AssetClass.ETF, AssetClass.INDEX})


class Underlyings:
    """The underlyings among the mapped instruments; looked at only when somebody asks for one."""

    def __init__(self) -> None:
        self._mappings: tuple[InstrumentMapping, ...] = ()
        self._by_key: dict[str, Underlying] | None = None
        self._by_symbol: dict[str, list[Underlying]] = {}

    def load(self, mappings: Iterable[InstrumentMapping]) -> None:
        """Take over the mappings of a snapshot."""
        self._mappings = tuple(mappings)
        self._by_key = None

    def find(self, text: str) -> Underlying | None:
        """Return the underlying behind a key (`NSE:NIFTY`) or a symbol (`NIFTY`), None when it is unknown.

        A symbol of several exchanges means the one most people mean: NSE before BSE, India before elsewhere.
        """
        name = text.strip().upper()
        by_key = self._built()
        if ":" in name:
            return by_key.get(name)
        same = self._by_symbol.get(name, [])
        return min(
            same,
            key=lambda item: (item.exchange == "BSE", item.exchange not in DERIVATIVES_OF, item.exchange),
            default=None,
        )

    def all(self) -> list[Underlying]:
        """Return every underlying, by key."""
        by_key = self._built()
        return [by_key[key] for key in sorted(by_key)]

    def _built(self) -> dict[str, Underlying]:
        if self._by_key is not None:
            return self._by_key
        rows: dict[str, dict[str, InstrumentMapping]] = {}
        for mapping in self._mappings:
            if mapping.asset_class in _MAY_HAVE_OPTIONS:
                rows.setdefault(mapping.instrument, {})[mapping.provider_code] = mapping
        self._by_key, self._by_symbol = {}, {}
        for key, mappings in rows.items():
            one = next(iter(mappings.values()))
            found = Underlying(key, one.exchange, one.symbol, one.asset_class, one.currency, mappings)
            self._by_key[key] = found
            self._by_symbol.setdefault(one.symbol, []).append(found)
        return self._by_key
