"""What is wrong just now, in words for an administrator: a text by key, for notices. Pure.

A key stands for one trouble from its beginning to its end; the text may change meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from services.pipeline.sink import Sink, SinkState
from services.storage.spool import ChannelStatus

_SPOOL_LEVELS = (100, 80, 50)
_EXPIRY_WARNING_MS = 2 * 3_600_000
_AWAY = ("backing_off", "stale", "closed")
_DELIVERS_NOTHING = (*_AWAY, "parked")


class ProviderCondition(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's `state` and `reason`; when its credentials expire, UTC epoch ms, None where unknown."""

    code: str
    state: str
    reason: str
    credential_expires_ms: int | None = None


def troubles(
    *,
    now_ms: int,
    providers: Iterable[ProviderCondition],
    sinks: Iterable[Sink],
    spool: Iterable[ChannelStatus],
    not_ready: Sequence[str],
    degraded: Sequence[str],
) -> dict[str, str]:
    """Return every trouble that is present."""
    found: dict[str, str] = {}
    for provider in providers:
        reason = f": {provider.reason}" if provider.reason else ""
        if provider.state == "parked":
            found[f"provider:{provider.code}"] = f"{provider.code} is parked{reason}"
        elif provider.state in _AWAY:
            found[f"provider:{provider.code}"] = f"{provider.code} delivers nothing{reason}"
        expires_ms = provider.credential_expires_ms
        if expires_ms is not None and 0 < expires_ms - now_ms < _EXPIRY_WARNING_MS:
            minutes = (expires_ms - now_ms) // 60_000
            found[f"credentials:{provider.code}"] = (
                f"the credentials of {provider.code} expire in less than {minutes // 10 * 10 + 10} minutes"
            )
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
