"""The user name and password in use for a Redis, which may change while the daemon runs.

Every connection asks here when it logs in, so that a new password reaches all of them without one being
made anew. What is replaced is remembered by address and old login; another Redis is never affected.
"""

from __future__ import annotations

import msgspec
from redis.credentials import CredentialProvider

from services.storage.address import RedisAddress, parse_address

_Login = tuple[str | None, str | None]
_Key = tuple[str, int, str | None, _Login]

_replaced: dict[_Key, _Login] = {}


class Login(msgspec.Struct, frozen=True):
    """A user name and a password, None where there is none."""

    username: str | None
    password: str | None


def replace_credentials(url: str, new_url: str) -> bool:
    """Log in with what `new_url` says wherever `url` is used; False when it means another server.

    Raises `StorageMisconfigured` when one of them is no Redis URL.
    """
    old, new = parse_address(url), parse_address(new_url)
    if (old.host, old.port, old.path, old.database) != (new.host, new.port, new.path, new.database):
        return False
    _replaced[_key(old)] = (new.username, new.password)
    return True


def current_login(address: RedisAddress) -> Login:
    """Return what to log in with at `address` just now."""
    return Login(*_replaced.get(_key(address), (address.username, address.password)))


class CurrentCredentials(CredentialProvider):
    """Gives redis-py the login in use, at every connection anew."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return user name and password as redis-py takes them; nothing where none is needed."""
        login = current_login(self._address)
        if login.password is None:
            return ()  # type: ignore[return-value]  # redis-py then logs in with nothing
        return (login.username, login.password) if login.username else (login.password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """Return the same; redis-py's own would log a warning at every connection."""
        return self.get_credentials()


def _key(address: RedisAddress) -> _Key:
    return (address.host, address.port, address.path, (address.username, address.password))
