#!/bin/sh
# Creates or updates .venv from a lock: `deploy/env.sh local` to use the kit, `deploy/env.sh dev` to test it too,
# `deploy/env.sh docs` to make the site.
# PYTHON names the interpreter, 3.11 or later; a bare version, such as 3.14, is the images' (celery_kit/operate/stacks/pythons.py).
# Does nothing where the environment has that lock already. Needs no program but a shell and Python.
set -eu
case $0 in */*) cd "${0%/*}/.." ;; *) cd .. ;; esac

lock=requirements/$1.txt
refuse() { printf 'celery-kit: %s\n' "$*" >&2; exit 2; }

# The developers' lock includes all others, but not what makes the site.
[ "$1" = docs ] && held_by="$lock" || held_by="$lock requirements/dev.txt"
holds='
import sys
from pathlib import Path
locks = [(Path(".venv", Path(lock).name), Path(lock)) for lock in sys.argv[1:]]
sys.exit(not any(held.exists() and held.read_bytes() == lock.read_bytes() for held, lock in locks))'
# shellcheck disable=SC2086  # a list of names
if .venv/bin/python -ISc "$holds" $held_by 2>/dev/null; then exit 0; fi

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
    "$PYTHON" -m venv --clear .venv >/dev/null 2>&1 || refuse "$PYTHON cannot make an environment; on Debian and Ubuntu: apt-get install python3-venv"
fi
if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement "$lock" 2>.venv/pip.log; then
    while read -r line; do last=$line; done <.venv/pip.log
    refuse "the packages of $lock could not be installed: ${last:-pip gave no reason}"
fi
.venv/bin/python -ISc 'import shutil, sys; shutil.copy(sys.argv[1], ".venv")' "$lock"
