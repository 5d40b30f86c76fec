"""What the judge of silence demands before it speaks: the figures of its tests, with their reasons.

The evidence is a sequential test (CUSUM) between two explanations of what arrives: at least
`ORDINARY_SHARE` of the usual rate, and at most `BROKEN_SHARE` of it. It is measured in nats: 16 of them
mean that what was seen is nine million times likelier when the feed is broken.
"""

from __future__ import annotations

import math

PERIOD_S = 2.0
"""Every armed instrument is looked at once in so many seconds, as long as `BUDGET` a second are enough."""
BUDGET = 2_500
"""So many instruments at most are looked at in one call; more are spread over several."""
LONGEST_STEP_S = 30.0
"""When the judge itself was away for longer (a blocked loop, a sleeping machine), silence proves nothing."""

ORDINARY_SHARE = 0.5
BROKEN_SHARE = 0.025
LOSS = ORDINARY_SHARE - BROKEN_SHARE
"""Nats that every expected tick adds."""
GAIN = math.log(ORDINARY_SHARE / BROKEN_SHARE)
"""Nats that every tick that comes takes away. The two balance at 21 % of the usual rate."""
NEEDED = 16.0
"""Nats that make a fault."""
CLEARED = NEEDED / 4
"""A fault ends when no more evidence than this is left."""
CAP = NEEDED * 1.2
SUSPICIOUS = NEEDED * 0.5
INSTRUMENT_NATS_PER_S = 2.5
FEED_NATS_PER_S = 2.0
"""However busy, one second of silence never proves more than this."""
WITNESS_SHARE, WITNESS_NATS = 0.5, 5.0
"""By what another provider brings meanwhile, so much counted of it, so many nats make an instrument mute.
Where it is silent too though `HALT_TICKS` should have come, trading is probably halted: nothing is found."""
HALT_TICKS = 5.0
WITNESS_LEAST, WITNESS_SEEN, WITNESS_RATIO = 5, 10.0, 3.0
"""The least ticks of a witness, the least that must be known of both rates, and how far they may differ."""
PATIENCE, MOST_PATIENCE = 1.5, 2.0
"""When an instrument recovers from a brown-out by itself, so many times as much is needed the next time."""
OPENING_S = 30.0
"""After the open nothing is learned or judged for so long: auctions end late, and vendors start slowly."""
ARMED_S = 15.0
"""Nor so long after a subscription."""
LEAST_SILENCE_S = 5.0
LEAST_BROWN_OUT_S = 10.0
GAP_FACTOR = 2.0
"""A mute instrument is silent for longer than so many times its longest ordinary silence."""
SURE_GAP_FACTOR, SURE_TICKS, SURE_SHARE = 2.5, 8.0, 0.25
"""So many times the longest one are enough by themselves, where at such a share of the usual rate so many
ticks should have come, of an instrument observed for `SURE_SPAN_S`."""
SURE_SPAN_S = 240.0

MEMORY_TICKS = 60.0
"""A rate is learned from about so many ticks,"""
SHORTEST_HALF_LIFE_S, LONGEST_HALF_LIFE_S = 600.0, 3_600.0
"""within these half-lives, in time of open sessions: busy instruments change within the hour."""
GAP_DECAY = math.log(2) / (6 * 3_600.0)
LEAST_OVERNIGHT_S, MOST_OVERNIGHT_S = 300.0, 1_800.0
"""What was learned before today weighs no more than so many seconds of today, or `MEMORY_TICKS` ticks."""
WARMING_WEIGHT, WARMING_S, WARM_S = 0.3, 300.0, 900.0
"""Days differ: until so long after the open such a share of what is usual is expected, then more and more."""
LEARNED_SPAN_S = 60.0
"""An instrument observed for less is not expected to do anything."""
BURST_FACTOR = 2.0
"""What exceeds so many times the usual rate is not believed to be the new one."""
FAULTY_LEARNING = 1 / 6
"""How fast a rate is learned while it counts as a fault: in the end it becomes the usual one."""
SPECIAL_WEIGHT = 0.3
"""On a day with special hours (Diwali, the eve of a holiday) so much of the usual rate is expected."""

OLD_BY_MS = 60_000
"""So much older than its usual delay is a tick that was replayed."""
STUCK_BY_MS = 10_000
"""A source's time that stands still counts against it from this age on, beyond its usual delay."""
REPLAY_NATS = 3.0

WITNESS_TICKS = 10
WITNESS_S = 60.0
"""One that never ticked is a fault when another provider brought so many ticks in so many seconds."""
UNSTARTED_S = 900.0
UNSTARTED_CHANCE = 0.025
"""Without a witness: after so long, when of its peers fewer than this share could be silent for so long."""
FEED_WITNESS_S = 60.0
"""A feed that never spoke is a fault when another provider's feed of that exchange flows."""
FEED_LEAST = 3
FEED_UNSTARTED_S = 120.0
FEED_UNSTARTED_EXPOSURE_S = 12_000.0
"""Without one: after so many seconds, and so many seconds times instruments."""
FEED_REPLAYED_SHARE = 0.5
"""A feed is replayed when so many of the instruments that tick are."""
