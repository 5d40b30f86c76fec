"""Which schema revisions this program knows, so that the daemon can tell behind from ahead.

A test keeps this list equal to the revision files of the migrations.
"""

from __future__ import annotations

SCHEMA_REVISIONS: tuple[str, ...] = ("0001", "0002", "0004")
"""Every revision from the oldest to the newest."""

SCHEMA_REVISION: str = SCHEMA_REVISIONS[-1]
"""The revision the models describe."""
