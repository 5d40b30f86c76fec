"""The embedded servers, for one machine; production points `REDIS_URL` and `DATABASE_URL` at real ones."""

from services.operations.embedded_postgres import EmbeddedPostgres
from services.operations.embedded_redis import EmbeddedRedis

__all__ = ["EmbeddedPostgres", "EmbeddedRedis"]
