"""Another program on the same machine: what a fixed piece of work takes it, and how long it waits for it.

    python -m benchmarks.bystander

It has nothing to do with the daemon. So when its work takes longer, the machine has become slower, and when
it waits longer, there is less left of the machine; a long run is judged against both.

Commands: `{"do": "begin"}`, and `{"do": "end"}`, which answers for the pieces since: `pieces`, `work_us`
(the mean processor time of one, µs), and `p50` and `p99` of the milliseconds from when one was due until it
was done. Standard library only; ends with its standard input.
"""

from __future__ import annotations

import random
import selectors
import sys
import time

from benchmarks.helper import STAMPS_PER_S, Latencies, commands, say, stdin_bytes

_EVERY_S = 0.01
_LOOK_UPS, _ENTRIES = 100, 200_000
"""Of the interpreter and of memory beyond the caches, which is what a daemon's time goes to."""


class Bystander:
    """The pieces of work since `begin`."""

    def __init__(self) -> None:
        chance = random.Random(1)
        self._table = {str(number): float(number) for number in range(_ENTRIES)}
        self._keys = [str(chance.randrange(_ENTRIES)) for _ in range(2_048 * _LOOK_UPS)]
        self._at = 0
        self._spent_s = 0.0
        self._base_s = time.monotonic()
        self._waits = Latencies(self._base_s)

    def begin(self) -> None:
        """Forget what was before."""
        self._waits.begin()
        self._spent_s = 0.0

    def work(self, due_s: float) -> None:
        """Do one piece, which was due at that moment of the monotonic clock."""
        began_s = time.thread_time()
        table, total = self._table, 0.0
        for key in self._keys[self._at : self._at + _LOOK_UPS]:
            total += table[key]
        self._at = (self._at + _LOOK_UPS) % len(self._keys)
        self._spent_s += time.thread_time() - began_s
        self._waits.note(self._waits.now(), [int((due_s - self._base_s) * STAMPS_PER_S)])

    def end(self) -> dict[str, float]:
        """Return what the pieces took."""
        waits = self._waits.end()
        return {
            "pieces": waits["seen"],
            "work_us": self._spent_s / max(1, waits["seen"]) * 1e6,
            "p50": waits["p50"] or 0.0,
            "p99": waits["p99"] or 0.0,
        }


def main() -> None:
    """Work at an even pace until standard input ends."""
    bystander = Bystander()
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    say({"ready": True})
    due_s = time.monotonic() + _EVERY_S
    while True:
        if selector.select(max(0.0, due_s - time.monotonic())):
            data = stdin_bytes()
            if not data:
                return
            for command in commands(data):
                if command["do"] == "begin":
                    bystander.begin()
                    say({"begun": True})
                else:
                    say(bystander.end())
            continue
        bystander.work(due_s)
        due_s = max(due_s + _EVERY_S, time.monotonic())


if __name__ == "__main__":
    main()
