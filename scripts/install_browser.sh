#!/bin/sh
# Installs a headless Chromium for the browser tests where that needs no question: as root, with apt-get,
# and only if there is none. Says what it did; exit code 0 when a browser is there in the end.
set -u
for name in chromium-headless-shell chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "marketd: no Chromium, and none can be installed without root and apt-get; browser tests will be skipped"
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
if apt-get -qq update >/dev/null 2>&1 &&
    apt-get -qq install -y --no-install-recommends chromium-headless-shell >/dev/null 2>&1; then
    echo "marketd: installed chromium-headless-shell for the browser tests"
else
    echo "marketd: apt-get could not install chromium-headless-shell; browser tests will be skipped"
    exit 1
fi
