"""The container's health check: exit 0 while data can flow, 1 with the reason while it cannot."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request

_WITHIN_S = 4.0


def main() -> int:
    """Ask the daemon in this container; return the exit code."""
    url = f"http://127.0.0.1:{os.environ.get('API_PORT') or '8080'}/readyz"
    try:
        with urllib.request.urlopen(url, timeout=_WITHIN_S):
            return 0
    except urllib.error.HTTPError as error:
        try:
            reasons = json.load(error).get("reasons", [])
        except ValueError:
            reasons = []
        print("; ".join(map(str, reasons)) or f"answers {error.code}")
    except OSError as error:
        print(f"does not answer: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
