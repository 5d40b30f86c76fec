"""The sources of option chains there are, in the order an operator wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from services.errors import ConfigurationError
from services.market_data.clock import Clock
from services.on_demand_provider import OptionsDataProvider
from services.options import dhan_options, nse_options, yahoo_options
from services.options.source import OptionSource, Settings, Underlying
from services.rest import vendor_limits
from services.rest.quota import Quota, QuotaLimits


class _Known(NamedTuple):
    """How a source is made; `fresh_s` is how long its answer is as good as a new one."""

    make: Callable[[Settings, Clock, Quota], OptionsDataProvider]
    symbol_of: Callable[[Underlying], str | None]
    fresh_s: float
    limits: QuotaLimits


_SOURCES = {
    # One unique request in three seconds is Dhan's limit.
    dhan_options.CODE: _Known(dhan_options.DhanOptions, dhan_options.symbol_of, 3.0, vendor_limits.DHAN),
    # The site itself renews a chain every one to three minutes.
    nse_options.CODE: _Known(nse_options.NseOptions, nse_options.symbol_of, 30.0, vendor_limits.NSE),
    yahoo_options.CODE: _Known(
        yahoo_options.YahooOptions, yahoo_options.symbol_of, 15.0, vendor_limits.YAHOO
    ),
}
DEFAULT_ORDER = tuple(_SOURCES)


def option_sources(
    settings: Settings,
    clock: Clock,
    order: Sequence[str] = DEFAULT_ORDER,
    quotas: Mapping[str, Quota] = MappingProxyType({}),
) -> list[OptionSource]:
    """Return the sources named by `order`, first choice first.

    `quotas` are the budgets, by code, that other requests of the same vendors are taken from too. Raises
    `ConfigurationError` for an unknown one.
    """
    unknown = [code for code in order if code not in _SOURCES]
    if unknown:
        raise ConfigurationError(
            f"OPTION_PROVIDERS: {', '.join(unknown)} has no option chains; there are {', '.join(_SOURCES)}"
        )
    return [
        OptionSource(
            code,
            known.make(settings, clock, quotas.get(code) or Quota(code, known.limits, clock)),
            known.symbol_of,
            known.fresh_s,
        )
        for code in order
        for known in (_SOURCES[code],)
    ]
