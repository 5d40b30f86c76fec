"""Redis URLs, read as redis-py reads them."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from services.errors import StorageMisconfigured
from services.storage.address import parse_address


def test_host_port_database_user_and_password() -> None:
    address = parse_address("redis://writer:p%40ss@redis.example:6380/2")
    assert (address.host, address.port, address.database) == ("redis.example", 6380, 2)
    assert (address.username, address.password) == ("writer", "p@ss")
    assert address.tls is None
    assert str(address) == "redis.example:6380"


def test_what_is_left_out_has_the_usual_value() -> None:
    address = parse_address("redis://")
    assert (address.host, address.port, address.database, address.password) == ("localhost", 6379, 0, None)


def test_a_unix_socket() -> None:
    address = parse_address("unix://:secret@/run/redis.sock?db=1")
    assert (address.path, address.database, address.password) == ("/run/redis.sock", 1, "secret")
    assert str(address) == "unix socket /run/redis.sock"


def test_tls_verifies_unless_told_otherwise() -> None:
    strict = parse_address("rediss://h").tls
    assert strict is not None
    assert (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    by_name = parse_address("rediss://h?ssl_check_hostname=false").tls
    assert by_name is not None
    assert (by_name.verify_mode, by_name.check_hostname) == (ssl.CERT_REQUIRED, False)
    none = parse_address("rediss://h?ssl_cert_reqs=none").tls
    assert none is not None
    assert none.verify_mode == ssl.CERT_NONE


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageMisconfigured, match="TLS files"):
        parse_address(f"rediss://h?ssl_ca_certs={tmp_path}/none.crt")
    with pytest.raises(StorageMisconfigured, match="TLS files"):
        parse_address(f"rediss://h?ssl_certfile={tmp_path}/none.crt")


@pytest.mark.parametrize(
    "url", ["", "http://h", "redis://h:port", "redis://:secret@h:99999", "localhost:6379"]
)
def test_what_is_no_redis_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(StorageMisconfigured, match="not a Redis URL") as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)


def test_the_password_is_not_in_the_text_of_an_address() -> None:
    assert "secret" not in repr(parse_address("redis://:secret@h"))
