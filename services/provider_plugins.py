"""Providers that other installed packages offer, through the entry-point group `market_data.providers`.

The name of an entry point is the provider code, its value a `BaseMarketDataProvider` subclass.
Light: looking for them imports none of them.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from services.errors import ConfigurationError

ENTRY_POINT_GROUP = "market_data.providers"


def plugged_in_codes() -> tuple[str, ...]:
    """Return the codes of the providers that installed packages offer."""
    return tuple(sorted(entry.name.upper() for entry in entry_points(group=ENTRY_POINT_GROUP)))


def load_plugins() -> dict[str, Any]:
    """Import them and return the classes by code. Raises `ConfigurationError` when one cannot be imported."""
    loaded: dict[str, Any] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded[entry.name.upper()] = entry.load()
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(
                f"provider {entry.name} ({entry.value}) cannot be loaded: {error}. "
                "Repair or uninstall its package."
            ) from error
    return loaded
