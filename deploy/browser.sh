#!/bin/sh
# Installs Chromium for the browser tests from the distribution's packages if none is on PATH. Installing needs root.
set -eu
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "celery-kit: the browser tests need Chromium; install it, or run as root on Debian" >&2
    exit 2
fi
apt-get update -qq >/dev/null
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/tmp/celery-kit-chromium.log 2>&1 ||
    { echo "celery-kit: Chromium could not be installed: see /tmp/celery-kit-chromium.log" >&2; exit 2; }
