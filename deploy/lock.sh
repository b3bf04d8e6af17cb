#!/bin/sh
# Pins every requirement with hashes: one lock for each purpose, all from the same resolution, without the address of an index.
set -eu
cd "$(dirname "$0")/.."
deploy/env.sh dev
pin() { .venv/bin/uv pip compile --quiet --generate-hashes --universal --fork-strategy fewest --no-header "$@"; }
pin pyproject.toml --extra dev --upgrade -o requirements/dev.txt
for extra in audit docs eventlet gevent local monitor worker; do
    pin pyproject.toml --extra worker --extra "$extra" -c requirements/dev.txt -o "requirements/$extra.txt"
done
# An earlier Celery, with all else as it is.
others() { grep -oE '^[A-Za-z0-9._-]+==[^ ]+' requirements/dev.txt | grep -vE '^(celery|kombu|redis)=='; }
for celery in requirements/celery-*.in; do others | pin "$celery" pyproject.toml -c /dev/stdin -o "${celery%.in}.txt"; done
pin bench/peers/requirements.in -o bench/peers/requirements.txt
pin bench/peers/newer.in -o bench/peers/newer.txt
pin tests/packages/requirements.in pyproject.toml --extra worker --override tests/packages/overrides.txt -o tests/packages/requirements.txt
pin tests/fuzz/requirements.in -o tests/fuzz/requirements.txt
pin tests/upstream/requirements.in pyproject.toml --extra worker -o tests/upstream/requirements.txt
echo aiosmtpd | pin - -c requirements/dev.txt -o requirements/mail.txt
