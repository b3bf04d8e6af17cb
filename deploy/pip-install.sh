#!/bin/sh
# Installs a lock into /opt/venv, byte-compiled, without the packages' own tests (Tornado's have a private key), C sources and debug
# information.
# wheels.txt notes which file of those that the lock allows each package came from. For deploy/Dockerfile.
set -eu
[ ! -s /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca
[ ! -s /run/secrets/pip ] || export PIP_CONFIG_FILE=/run/secrets/pip
pip --python /opt/venv/bin/python install --quiet --no-cache-dir --no-deps --require-hashes --only-binary :all: --no-compile \
    --disable-pip-version-check --root-user-action ignore --report /tmp/report.json --requirement "$1"
/opt/venv/bin/python - >> /opt/venv/wheels.txt <<'END'
import json
from urllib.parse import unquote
files = [one["download_info"] for one in json.load(open("/tmp/report.json"))["install"]]
print(*sorted(f"{one['archive_info']['hashes']['sha256']}  {unquote(one['url']).rpartition('/')[2]}" for one in files), sep="\n")
END
find /opt/venv/lib -depth \( -type d \( -name tests -o -name testing -path '*/gevent/*' -o -name test -path '*/tornado/*' \) -o -name '*.c' -o -name '*.pyx' -o -name '*.h' -o -name '*.hpp' -o -name '*.cpp' \) -exec rm -rf {} +
find /opt/venv/lib -name '*.so*' -type f -exec strip --strip-unneeded {} +
# One time for all files where it is given: it is part of the compiled ones.
dated() { [ -z "${SOURCE_DATE_EPOCH:-}" ] || find /layer -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +; }
dated
env -u SOURCE_DATE_EPOCH /opt/venv/bin/python -m compileall -q -j 0 /opt/venv/lib
dated
