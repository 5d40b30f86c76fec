"""Exchanges: where instruments are traded, and by which clock and calendar."""

from __future__ import annotations

from sqlalchemy import Boolean, CheckConstraint, String, UniqueConstraint, true
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Row


class Exchange(Row, Base):
    """One exchange or market segment, such as `NSE`, `NFO` or `CRYPTO`.

    `timezone` is an IANA name. `calendar` is a name of the exchange_calendars library, NULL where it
    has none that fits. `country` (two letters) and `currency` are NULL where a market has no single one.
    """

    __tablename__ = "exchanges"
    __table_args__ = (
        UniqueConstraint("code"),
        CheckConstraint("code ~ '^[A-Z][A-Z0-9]*$'", name="code_is_upper_case"),
        CheckConstraint("btrim(name) <> ''", name="name_is_not_blank"),
        CheckConstraint("timezone ~ '^[A-Za-z]+([/_+-][A-Za-z0-9]+)*$'", name="timezone_is_a_zone_name"),
        CheckConstraint("btrim(calendar) <> ''", name="calendar_is_not_blank"),
        CheckConstraint("country ~ '^[A-Z]{2}$'", name="country_has_two_letters"),
        CheckConstraint("currency ~ '^[A-Za-z]{3,10}$'", name="currency_is_a_code"),
    )

    code: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(200))
    timezone: Mapped[str] = mapped_column(String(64))
    calendar: Mapped[str | None] = mapped_column(String(32))
    country: Mapped[str | None] = mapped_column(String(2))
    currency: Mapped[str | None] = mapped_column(String(10))
    is_active: Mapped[bool] = mapped_column(Boolean, server_default=true())
