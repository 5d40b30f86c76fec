"""Runs `main.py` with a judge of silence that learns in seconds, for tests that wait for what it finds.

    python tests/support/quick_judge.py run

No setting for operators: what was watched for seconds says little about a real market.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from services.silence import rules

# Before anything else reads them.
rules.LEARNED_SPAN_S = 6.0
rules.ARMED_S = 2.0
rules.OPENING_S = 1.0
rules.WARMING_S, rules.WARM_S = 1.0, 2.0

if __name__ == "__main__":
    import main

    sys.exit(main.main())
