#!/bin/sh
# Finds a Python and lets it set everything up; says nothing when that is done already. Called by make.
# PYTHON=/path/to/python3 chooses another one.
set -eu
unset CDPATH
cd -- "$(dirname -- "$0")/.."

fail() {
    printf 'marketd: %s\n' "$1" >&2
    exit 1
}

version_of() {
    "$1" -c 'import sys; print("%d %d" % sys.version_info[:2])' 2>/dev/null || true
}

# Tells whether $1 is a Python from 3.11 on, and not newer than 3.$2.
is_suitable() {
    newest=$2
    set -- $(version_of "$1")
    [ $# -eq 2 ] && [ "$1" -eq 3 ] && [ "$2" -ge 11 ] && [ "$2" -le "$newest" ]
}

find_python() {
    # First the versions the tests run with, then anything newer.
    for newest in 13 99; do
        for candidate in python3 python3.13 python3.12 python3.11 python; do
            if is_suitable "$candidate" "$newest"; then
                echo "$candidate"
                return
            fi
        done
    done
}

if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ] && .venv/bin/python scripts/setup.py --is-done 2>/dev/null; then
        exit 0
    fi
    found=$(find_python)
    [ -n "$found" ] ||
        fail "no Python 3.11 or newer was found on PATH; install one (Debian 12, Ubuntu 24.04 and later: apt-get install python3 python3-venv), or set PYTHON=/path/to/python3."
    exec "$found" scripts/setup.py
fi

is_suitable "$PYTHON" 99 ||
    fail "PYTHON=$PYTHON is no Python 3.11 or newer; set PYTHON to one, or leave it out."
exec "$PYTHON" scripts/setup.py
