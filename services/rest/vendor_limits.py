"""How often each vendor's data may be asked for, whatever is asked: one account, one budget.

Past bars, option chains and news of a vendor take turns from one `Quota` with these limits.
"""

from __future__ import annotations

from services.rest.quota import QuotaLimits
from services.wire import dhan_charts, yahoo_chart

_IST_S = 19_800

DHAN = QuotaLimits(
    per_second=dhan_charts.DATA_REQUESTS_PER_S,
    per_day=dhan_charts.DATA_REQUESTS_PER_DAY,
    day_offset_s=_IST_S,
)
NSE = QuotaLimits(per_second=0.55, burst=2)
"""The website's own pages ask about as often; a request in two seconds, after the margin."""
YAHOO = QuotaLimits(per_second=yahoo_chart.REQUESTS_PER_S, burst=3)
