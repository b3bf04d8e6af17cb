#!/bin/sh
# Installs a lock into /opt/venv, byte-compiled, without the packages' own tests, C sources and debug information.
# For deploy/Dockerfile.
set -eu
[ ! -s /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca
[ ! -s /run/secrets/pip ] || export PIP_CONFIG_FILE=/run/secrets/pip
pip --python /opt/venv/bin/python install --quiet --no-cache-dir --no-deps --require-hashes --only-binary :all: --no-compile \
    --disable-pip-version-check --root-user-action ignore --requirement "$1"
find /opt/venv/lib -depth \( -type d \( -name tests -o -name testing -path '*/gevent/*' \) -o -name '*.c' -o -name '*.pyx' -o -name '*.h' -o -name '*.hpp' -o -name '*.cpp' \) -exec rm -rf {} +
find /opt/venv/lib -name '*.so*' -type f -exec strip --strip-unneeded {} +
/opt/venv/bin/python -m compileall -q -j 0 /opt/venv/lib
