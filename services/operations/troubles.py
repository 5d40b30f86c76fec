"""What is wrong just now, in words for an administrator: a text by key, for notices. Pure.

A key stands for one trouble from its beginning to its end; the text may change meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from services.credential_state import DEAD, CredentialState, MarketHours
from services.market_data.records import ControlRecord
from services.pipeline.sink import Sink, SinkState
from services.storage.spool import ChannelStatus

_NAMED = 5
_SPOOL_LEVELS = (100, 80, 50)
_EXPIRY_WARNING_MS = 2 * 3_600_000
_RENEWED_WARNING_MS = 90 * 60_000
"""What renews itself is warned of when that should have happened long ago."""
_AWAY = ("backing_off", "stale", "closed")
_DELIVERS_NOTHING = (*_AWAY, "parked")


class ProviderCondition(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's `state` and `reason`; when its credentials expire, UTC epoch ms, None where unknown.

    `credential_state` is None where none are needed; `renews` says that they are renewed by themselves.
    `hours` are the sessions of its exchanges, `quiet` that none runs and none is near.
    """

    code: str
    state: str
    reason: str
    credential_expires_ms: int | None = None
    credential_state: CredentialState | None = None
    renews: bool = False
    hours: MarketHours = MarketHours(open=True)
    quiet: bool = False

    @property
    def waits_for_a_human(self) -> bool:
        """Whether it is parked for its credentials, which nobody needs to mend before a session is near."""
        return self.state == "parked" and self.quiet and self.credential_state in DEAD


def troubles(
    *,
    now_ms: int,
    providers: Iterable[ProviderCondition],
    sinks: Iterable[Sink],
    spool: Iterable[ChannelStatus],
    not_ready: Sequence[str],
    degraded: Sequence[str],
    silence: Mapping[str, str] = {},
    disputes: Mapping[str, str] = {},
    not_renewed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return every trouble that is present.

    `silence` is what the judge of silence raises, by key; `disputes` the instruments whose providers have
    differed about the price for too long.
    """
    found: dict[str, str] = dict(silence)
    if disputes:
        named = sorted(disputes)
        more = f" (and {len(named) - _NAMED} more instruments)" if len(named) > _NAMED else ""
        found["mapping:disputed"] = "; ".join(disputes[name] for name in named[:_NAMED]) + more
    for provider in providers:
        reason = f": {provider.reason}" if provider.reason else ""
        if provider.state == "parked" and not provider.waits_for_a_human:
            found[f"provider:{provider.code}"] = f"{provider.code} is parked{reason}"
        elif provider.state in _AWAY:
            found[f"provider:{provider.code}"] = f"{provider.code} delivers nothing{reason}"
        expiring = _expiring(provider, now_ms)
        if expiring is not None:
            found[f"credentials:{provider.code}"] = expiring
    for code, problem in (not_renewed or {}).items():
        found[f"renewal:{code}"] = f"{code}: {problem}"
    for sink in sinks:
        if sink.state in (SinkState.UNAVAILABLE, SinkState.PARKED):
            found[f"sink:{sink.name}"] = f"{sink.name} cannot be written: {sink.reason}"
    for channel in spool:
        percent = 100 * channel.size_bytes // channel.limit_bytes if channel.limit_bytes else 0
        level = next((level for level in _SPOOL_LEVELS if percent >= level), None)
        if level is not None:
            found[f"spool:{channel.name}:{level}"] = (
                f"the disk spool of {channel.name} is {level} % full ({channel.records} records wait)"
            )
        if channel.reason:
            found[f"disk:{channel.name}"] = f"the disk spool of {channel.name}: {channel.reason}"
    for reason in degraded:
        found[f"degraded:{reason.partition(':')[0]}"] = reason
    if not_ready and not any(key.startswith("sink:") for key in found):
        found["ready"] = f"data does not flow: {'; '.join(not_ready)}"
    return found


def _expiring(provider: ProviderCondition, now_ms: int) -> str | None:
    """Return in words that credentials end soon, or before a session that is near does."""
    expires_ms = provider.credential_expires_ms
    if expires_ms is None or expires_ms <= now_ms or provider.quiet:
        return None
    left_ms = expires_ms - now_ms
    if left_ms < (_RENEWED_WARNING_MS if provider.renews else _EXPIRY_WARNING_MS):
        minutes = left_ms // 60_000
        return f"the credentials of {provider.code} expire in less than {minutes // 10 * 10 + 10} minutes"
    closes_ms = provider.hours.closes_ms
    if not provider.renews and closes_ms is not None and expires_ms < closes_ms:
        moment = datetime.fromtimestamp(expires_ms / 1000, UTC)
        return f"the credentials of {provider.code} expire at {moment:%H:%M} UTC, before its session ends"
    return None


TOLD_GAP_MS = 10_000
"""A shorter gap is in the stream and in no notice: a connection that was opened anew."""
_MEANT = ("not_subscribed", "mapping_removed", "remapped", "provider_deactivated")


def told_gap(record: ControlRecord) -> str | None:
    """Return in words what an administrator should hear of a closed `gap`; None for a short or meant one.

    The words are the same for all instruments of one event, so that they are told as one.
    """
    begins_ms, ends_ms, reason = (record.fields.get(name) for name in ("from", "to", "reason"))
    if not isinstance(begins_ms, int) or not isinstance(ends_ms, int) or reason in _MEANT:
        return None
    if ends_ms - begins_ms < TOLD_GAP_MS:
        return None
    return f"gap on {record.exchange}, over now: no data ({reason})"


def nobody_delivers(providers: Iterable[ProviderCondition], open_markets: Iterable[str]) -> str | None:
    """Return in words that no provider brings anything although markets are open; None when that is not so.

    A provider that nothing is wanted from (`idle`), or that is on its way, speaks against it.
    """
    providers, markets = list(providers), sorted(open_markets)
    if not markets or not providers:
        return None
    if any(provider.state not in _DELIVERS_NOTHING for provider in providers):
        return None
    each = "; ".join(
        f"{provider.code} is {provider.state.replace('_', ' ')}"
        + (f" ({provider.reason})" if provider.reason else "")
        for provider in providers
    )
    return f"no provider delivers although markets are open ({', '.join(markets)}): {each}"
