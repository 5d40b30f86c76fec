"""Prints the Redis users of marketd as an ACL file: each with the least rights that do, passwords hashed.

    REDIS_ADMIN_PASSWORD=… REDIS_WRITER_PASSWORD=… REDIS_CONSUMER_PASSWORD=… REDIS_READER_PASSWORD=… \\
        python deploy/redis/users_acl.py > users.acl

or with the passwords in files: REDIS_WRITER_PASSWORD_FILE=/path and so on. The server takes it with
`aclfile /path/users.acl` in redis.conf, and anew with ACL LOAD. A user without a password is left out
(REDIS_GATEWAY_PASSWORD makes one for gateways that run as processes of their own);
admin and writer are needed, because the default user is switched off.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

if not __package__:
    # Run as a file: Python has put this directory on the path instead of the project's.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from config.secret_files import read_secrets
from services.storage.access import ADMIN, CONSUMER, GATEWAY, READER, WRITER, RedisUser, acl_file

SHORTEST_PASSWORD = 12
EXIT_CONFIGURATION = 78
SETTINGS = {
    ADMIN: "REDIS_ADMIN_PASSWORD",
    WRITER: "REDIS_WRITER_PASSWORD",
    GATEWAY: "REDIS_GATEWAY_PASSWORD",
    CONSUMER: "REDIS_CONSUMER_PASSWORD",
    READER: "REDIS_READER_PASSWORD",
}


def main() -> int:
    """Print the file; return 0, or 78 with one sentence a problem on stderr."""
    environment = {name: value for name, value in os.environ.items() if value}
    found = read_secrets(environment, SETTINGS.values(), base=Path.cwd())
    passwords = {user: environment.get(name) or found.values.get(name, "") for user, name in SETTINGS.items()}
    problems = list(found.problems)
    for user, name in SETTINGS.items():
        if not passwords[user]:
            if user in (ADMIN, WRITER) and not found.problems:
                problems.append(f"{name} is not set: give {user.name} a password, or {name}_FILE=/path")
        elif len(passwords[user]) < SHORTEST_PASSWORD:
            problems.append(f"{name} is shorter than {SHORTEST_PASSWORD} characters: choose a longer one")
    given = [password for password in passwords.values() if password]
    if len(set(given)) != len(given):
        problems.append("two users have the same password: give each its own")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return EXIT_CONFIGURATION

    def hash_of(user: RedisUser) -> str | None:
        password = passwords[user]
        return hashlib.sha256(password.encode()).hexdigest() if password else None

    print("\n".join(acl_file(hash_of)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
