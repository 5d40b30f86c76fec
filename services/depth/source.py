"""DepthSource: what the desk asks of whatever brings books, and what a source tells the desk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Iterable, Sequence
from typing import Any, Protocol

from services.errors import RequestRefused
from services.market_data.updates import Level

SLICE = 1_000
"""So many instruments are worked through before others have their turn of the event loop."""


async def in_slices(instruments: Sequence[str]) -> AsyncIterator[Sequence[str]]:
    """Yield a long list in slices, between which others have their turn."""
    for start in range(0, len(instruments), SLICE):
        yield instruments[start : start + SLICE]
        await asyncio.sleep(0)


class BookTaker(Protocol):
    """The desk, as its sources see it."""

    def take(
        self,
        instrument: str,
        bids: tuple[Level, ...],
        asks: tuple[Level, ...],
        *,
        levels: int,
        provider_code: str,
        received_ms: int,
        flags: int,
    ) -> None:
        """A source says how a book stands."""

    def lost(self, instruments: Iterable[str], levels: int) -> None:
        """A source brings nothing of these any more, until it brings a book again."""

    def look_soon(self) -> None:
        """What can be had, or what it takes, is different from before."""


class DepthSource(Protocol):
    """A source of books of one depth."""

    levels: int

    @property
    def capacity(self) -> int | None:
        """How many instruments it can carry; None where it sets no limit of its own."""
        ...

    def stand(self) -> Hashable:
        """Something that is another whenever `refusal` may answer otherwise."""
        ...

    def refusal(self, instrument: str) -> RequestRefused | None:
        """Why the depth of an instrument cannot be had here just now; None when it can."""
        ...

    async def carry(self, instruments: Sequence[str]) -> None:
        """Bring the books of these and of no others; those it cannot have are passed over."""

    async def change(self, added: Sequence[str], removed: Sequence[str]) -> None:
        """Bring the books of `added` as well, and of `removed` no longer."""

    def status(self) -> dict[str, Any]:
        """What it carries, and over what."""
        ...
