#!/bin/sh
# Installs this checkout of marketd under /opt/marketd and as a systemd service. Safe to run again: an upgrade.
#   sudo deploy/systemd/install.sh
# Settings stay in /etc/marketd/marketd.env, data in /var/lib/marketd; neither is touched once it is there.
# PREFIX=/somewhere installs below another root and leaves systemd alone, for packages and for trying it out.
set -eu
source=$(cd "$(dirname "$0")/../.." && pwd)
prefix=${PREFIX:-}
target=$prefix/opt/marketd
settings=$prefix/etc/marketd/marketd.env

say() { printf 'marketd: %s\n' "$1"; }

if [ -z "$prefix" ] && [ "$(id -u)" -ne 0 ]; then
    echo "marketd: run it as root (sudo), or with PREFIX=/somewhere to try it out" >&2
    exit 77
fi

if [ -z "$prefix" ] && ! id marketd >/dev/null 2>&1; then
    useradd --system --home-dir /var/lib/marketd --shell /usr/sbin/nologin marketd
    say "made the user marketd"
fi

install -d "$target" "$prefix/etc/marketd" "$prefix/etc/systemd/system"
for part in config models data_migration services commands scripts simulators web deploy clients docs; do
    rm -rf "${target:?}/$part.new"
    cp -R "$source/$part" "$target/$part.new"
    rm -rf "${target:?}/$part"
    mv "$target/$part.new" "$target/$part"
done
for file in main.py requirements.txt requirements-build.txt requirements-dev.txt pyproject.toml Makefile README.md MULTI_PROVIDER_SETUP.md .env.example; do
    install -m 0644 "$source/$file" "$target/$file"
done
find "$target" -path "$target/.venv" -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
# Compiled parts are built for the Python that is used there, by its set-up.
rm -f "$target"/services/compiled/*.so "$target"/services/compiled/.built
say "copied the program to $target"

if [ ! -f "$settings" ]; then
    install -m 0600 "$source/.env.example" "$settings"
    say "made $settings: fill in DATABASE_URL and REDIS_URL, and DHAN_CLIENT_ID and DHAN_ACCESS_TOKEN for Dhan"
fi

(cd "$target" && sh scripts/setup.sh)
# The service cannot write here: without this every start would compile all of it anew.
if [ -x "$target/.venv/bin/python" ]; then
    (cd "$target" && .venv/bin/python -m compileall -q config models data_migration services commands simulators main.py)
fi
install -m 0644 "$source/deploy/systemd/marketd.service" "$prefix/etc/systemd/system/marketd.service"

if [ -z "$prefix" ]; then
    systemctl daemon-reload
    say "now: systemctl enable --now marketd, and systemctl status marketd"
else
    say "installed below $prefix; systemd was not told"
fi
