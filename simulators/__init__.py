"""Wire-compatible simulators of the market-data vendors: for the demo, the tests and the fault drills.

They stand outside the daemon and speak to it through sockets only. Of `services` they use the wire
codecs and the error tree, nothing else, so that a mistake in the daemon cannot hide in its own mirror.
"""

from __future__ import annotations

from simulators.dhan import DhanSimulator
from simulators.journal import Journal, SentTick
from simulators.market import InstrumentSpec, Market
from simulators.yahoo import YahooSimulator

__all__ = ["DhanSimulator", "InstrumentSpec", "Journal", "Market", "SentTick", "YahooSimulator"]
