"""The past as a process of its own, to be killed: `python -m tests.support.past_process` with JSON on stdin.

Takes what the daemon would give it: gaps as control records, one after another; then works until killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import msgspec

from services.history.backfill import BackfillDepth
from services.history.past import Past, PastConfig
from services.market_data.calendar import MarketCalendar
from services.market_data.instruments import InstrumentMapping, MappingSnapshot
from services.market_data.records import ControlRecord
from tests.support.past import FixedClock


async def main() -> None:
    """Run until killed; print `fed` when all gaps are noted."""
    order = json.loads(sys.stdin.readline())
    past = Past(
        PastConfig(
            database_url=order["database_url"],
            redis_url=order["redis_url"],
            folder=Path(order["folder"]),
            depth=BackfillDepth(minute_days=order["minute_days"]),
        ),
        clock=FixedClock(order["now_ms"]),
        calendar=MarketCalendar(),
        settings=lambda: order["settings"],
        publish=lambda record: None,
    )
    mappings = msgspec.convert(order["mappings"], tuple[InstrumentMapping, ...])
    past.load(MappingSnapshot(version=1, loaded_ms=0, providers=(), mappings=mappings))
    for source in past.sources.values():
        source.quota.limits = msgspec.structs.replace(
            source.quota.limits, per_second=order["per_second"], per_day=0
        )
    await past.open()
    await past.lead("epoch-1")
    work = asyncio.ensure_future(past.run())
    for begin, end in order["gaps"]:
        fields: dict[str, str | int] = {"from": begin, "to": end, "reason": "stale"}
        past.note(ControlRecord("gap", mappings[0].instrument, "NSE", end, end, "DHAN", fields))
        print(begin, flush=True)
        await asyncio.sleep(0.02)
    if "ask" in order:
        instruments, from_ms, to_ms = order["ask"]
        job_id = (await past.ask(instruments, "1m", from_ms, to_ms))["id"]
        while True:
            print(json.dumps(msgspec.to_builtins(past.backfill.jobs[job_id])), flush=True)
            await asyncio.sleep(0.5)
    await work


if __name__ == "__main__":
    asyncio.run(main())
