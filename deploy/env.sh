#!/bin/sh
# Creates or updates .venv from a lock: `deploy/env.sh local` to use the kit, `deploy/env.sh dev` to test it too,
# `deploy/env.sh docs` to make the site, `deploy/env.sh audit` to look for vulnerabilities. CELERY=5.6 makes .venv-5.6, with requirements/celery-5.6.txt over the lock.
# PYTHON names the interpreter, 3.11 or later; a bare version, such as 3.14, is the images' (celery_kit/operate/stacks/pythons.py).
# Does nothing where the environment has that lock already. Needs no program but a shell and Python.
set -eu
case $0 in */*) cd "${0%/*}/.." ;; *) cd .. ;; esac

# Passwords, data and logs of this checkout: nobody else's.
mkdir -p -m 700 .kit 2>/dev/null && chmod 700 .kit 2>/dev/null || :

lock=requirements/$1.txt celery=${CELERY:-}
venv=.venv${celery:+-$celery} over=${celery:+requirements/celery-$celery.txt}
refuse() { printf 'celery-kit: %s\n' "$*" >&2; exit 2; }
[ -z "$over" ] || [ -f "$over" ] || refuse "CELERY=$celery has no lock requirements/celery-$celery.txt; there are: $(echo requirements/celery-*.txt)"

# The developers' lock includes all others but these two.
case $1 in docs|audit) held_by=$lock;; *) held_by="$lock requirements/dev.txt";; esac
holds='
import sys
from pathlib import Path
def held(lock):
    copy = Path(sys.argv[1], Path(lock).name)
    return copy.exists() and copy.read_bytes() == Path(lock).read_bytes()
sys.exit(not (all(map(held, sys.argv[2].split())) and any(map(held, sys.argv[3:]))))'
# shellcheck disable=SC2086  # a list of names
if "$venv/bin/python" -ISc "$holds" "$venv" "$over" $held_by 2>/dev/null; then exit 0; fi

new_enough() { command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
case ${PYTHON:-} in [0-9]*) PYTHON=;; esac
if [ -n "${PYTHON:-}" ]; then
    new_enough "$PYTHON" || refuse "PYTHON=$PYTHON is not Python 3.11 or later ($("$PYTHON" -V 2>&1 || echo 'not found'))"
else
    for PYTHON in python3 python3.14 python3.13 python3.12 python3.11 none; do new_enough "$PYTHON" && break; done
    [ "$PYTHON" != none ] || refuse "Python 3.11 or later is needed; python3 is $(python3 -V 2>&1 || echo 'not installed'); name another by PYTHON=/path/to/python3"
fi

printf 'setting up %s from %s (once)\n' "$venv" "$lock${over:+ and $over}" >&2
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$PYTHON" -m venv --clear "$venv" >/dev/null 2>&1 || refuse "$PYTHON cannot make an environment; on Debian and Ubuntu: apt-get install python3-venv"
fi
for one in "$lock" $over; do
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --requirement "$one" 2>"$venv/pip.log"; then
        while read -r line; do last=$line; done <"$venv/pip.log"
        refuse "the packages of $one could not be installed: ${last:-pip gave no reason}"
    fi
done
# shellcheck disable=SC2086  # one name, or none
"$venv/bin/python" -ISc 'import shutil, sys; [shutil.copy(one, sys.argv[1]) for one in sys.argv[2:]]' "$venv" "$lock" $over
