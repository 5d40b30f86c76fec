"""Runs both simulators as a process: `python -m simulators`.

Prints one JSON line with all addresses and the Dhan credentials when ready, serves the control API on
loopback, and exits 0 on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

import msgspec
import uvloop

from simulators.control import ControlServer
from simulators.dhan import DhanSimulator
from simulators.journal import Journal
from simulators.market import Market
from simulators.nse import NseSimulator
from simulators.yahoo import YahooSimulator


class Addresses(msgspec.Struct, frozen=True):
    """The line printed when everything listens."""

    dhan_feed_url: str
    dhan_rest_url: str
    dhan_depth_20_url: str
    dhan_depth_200_url: str
    dhan_scrip_master_url: str
    dhan_client_id: str
    dhan_access_token: str
    yahoo_stream_url: str
    yahoo_rest_url: str
    nse_rest_url: str
    control_url: str
    pid: int


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulators", description="Simulated Dhan and Yahoo Finance on loopback."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address the simulated vendors listen on")
    parser.add_argument("--dhan-port", type=int, default=0, help="0: a free one")
    parser.add_argument("--yahoo-port", type=int, default=0, help="0: a free one")
    parser.add_argument("--control-port", type=int, default=0, help="0: a free one; always on loopback")
    parser.add_argument("--rate", type=float, default=2.0, help="ticks per second of each Dhan symbol")
    parser.add_argument(
        "--yahoo-rate", type=float, help="ticks per second of each Yahoo symbol (default: half of --rate)"
    )
    parser.add_argument("--seed", type=int, default=1, help="same seed, same prices")
    parser.add_argument(
        "--identity", action="store_true", help="price = base + seq x tick size, for judging every tick"
    )
    parser.add_argument("--journal", type=Path, help="append every sent tick to this file as JSON lines")
    parser.add_argument("--any-symbol", action="store_true", help="make up unknown but well-formed symbols")
    parser.add_argument(
        "--always-open", action="store_true", help="past bars around the clock, as the live market trades"
    )
    parser.add_argument(
        "--history-rate", type=float, help="chart requests per second each vendor allows (default: its limit)"
    )
    parser.add_argument("--compression", action="store_true", help="accept permessage-deflate")
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="exit when standard input reaches its end"
    )
    return parser.parse_args()


def _watch_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 4096):
        pass
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(stop.set)


async def _run(arguments: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if arguments.exit_with_parent:
        threading.Thread(target=_watch_parent, args=(loop, stop), daemon=True).start()

    journal = Journal(path=arguments.journal)
    market = Market(seed=arguments.seed, identity=arguments.identity)
    # In identity mode each vendor needs its own sequence; otherwise both show the same share at one price.
    other = Market(seed=arguments.seed, identity=True) if arguments.identity else market
    yahoo_rate = arguments.rate / 2 if arguments.yahoo_rate is None else arguments.yahoo_rate
    dhan = DhanSimulator(
        rate=arguments.rate,
        market=market,
        journal=journal,
        host=arguments.host,
        port=arguments.dhan_port,
        any_symbol=arguments.any_symbol,
        compression=arguments.compression,
    )
    yahoo = YahooSimulator(
        rate=yahoo_rate,
        market=other,
        journal=journal,
        host=arguments.host,
        port=arguments.yahoo_port,
        any_symbol=arguments.any_symbol,
        compression=arguments.compression,
    )
    for charts in (dhan.charts, yahoo.charts):
        charts.always_open = arguments.always_open
        if arguments.history_rate is not None:
            charts.limit.per_second = arguments.history_rate
            charts.limit.per_day = 0
    nse = NseSimulator(market, host=arguments.host)
    control = ControlServer(dhan, yahoo, journal, port=arguments.control_port)
    with journal:
        async with dhan, yahoo, nse, control:
            addresses = Addresses(
                dhan_feed_url=dhan.url,
                dhan_rest_url=dhan.rest_url,
                dhan_depth_20_url=dhan.depth_20_url,
                dhan_depth_200_url=dhan.depth_200_url,
                dhan_scrip_master_url=dhan.scrip_master_url,
                dhan_client_id=dhan.client_id,
                dhan_access_token=dhan.access_token,
                yahoo_stream_url=yahoo.url,
                yahoo_rest_url=yahoo.rest_url,
                nse_rest_url=nse.url,
                control_url=control.url,
                pid=os.getpid(),
            )
            print(msgspec.json.encode(addresses).decode(), flush=True)
            waits = [
                asyncio.create_task(stop.wait()),
                asyncio.create_task(dhan.wait_failed()),
                asyncio.create_task(yahoo.wait_failed()),
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)
    return 0 if stop.is_set() else 70


def main() -> None:
    """Run until told to stop; exit 0 then, 70 when a simulator failed, 1 when it could not start."""
    arguments = _arguments()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_run(arguments))
    except OSError as error:
        sys.exit(f"the simulators could not start: {error}")
    sys.exit(code)


if __name__ == "__main__":
    main()
