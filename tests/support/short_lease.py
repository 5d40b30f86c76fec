"""Runs `main.py` with a lease that ends soon, so that tests of fail-over take seconds.

    python tests/support/short_lease.py run

The setting is none for operators: a lease shorter than an ordinary pause changes hands for nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import main
import services.live_data_ingestion as ingestion
from services.storage.leadership import LeaseTimes

TIMES = LeaseTimes(ttl_s=3.0, renew_s=1.0, hold_s=2.0, retry_s=0.2)

if __name__ == "__main__":
    usual = ingestion.IngestionConfig
    ingestion.IngestionConfig = lambda **settings: usual(**settings, lease_times=TIMES)  # type: ignore
    sys.exit(main.main())
