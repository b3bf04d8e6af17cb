#!/bin/sh
# Makes or renews .venv from a lock: `deploy/env.sh local` to use the kit, `deploy/env.sh dev` to test it too,
# `deploy/env.sh docs` to make the site.
# PYTHON names the interpreter, 3.11 or later; a bare version, as 3.14, is of images (app/pythons.py). Does nothing where the
# environment holds that lock already.
set -eu
cd "$(dirname "$0")/.."

lock=requirements/$1.txt
refuse() { printf 'celery-kit: %s\n' "$*" >&2; exit 2; }

# The developers' lock holds all of the others, but not what makes the site.
[ "$1" = docs ] && held_by="$lock" || held_by="$lock requirements/dev.txt"
for held in $held_by; do
    cmp -s "$held" ".venv/$(basename "$held")" && exit 0
done

new_enough() { command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
case ${PYTHON:-} in [0-9]*) PYTHON=;; esac
if [ -n "${PYTHON:-}" ]; then
    new_enough "$PYTHON" || refuse "PYTHON=$PYTHON is not Python 3.11 or later ($("$PYTHON" -V 2>&1 || echo 'not found'))"
else
    for PYTHON in python3 python3.14 python3.13 python3.12 python3.11 none; do new_enough "$PYTHON" && break; done
    [ "$PYTHON" != none ] || refuse "Python 3.11 or later is needed; python3 is $(python3 -V 2>&1 || echo 'not installed'); name another by PYTHON=/path/to/python3"
fi

printf 'setting up .venv from %s (once)\n' "$lock" >&2
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    rm -rf .venv
    "$PYTHON" -m venv .venv >/dev/null 2>&1 || { rm -rf .venv; refuse "$PYTHON cannot make an environment; on Debian and Ubuntu: apt-get install python3-venv"; }
fi
.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement "$lock" 2>.venv/pip.log ||
    refuse "the packages of $lock could not be installed: $(tail -n 1 .venv/pip.log)"
cp "$lock" .venv/
