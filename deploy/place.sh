#!/bin/sh
# `place FOLDER`: prepares code below FOLDER for /. It is byte-compiled, and every user may read it, whatever its modes are in the
# checkout. With SOURCE_DATE_EPOCH all of it has that time: a second build makes the same layer. For deploy/Dockerfile.
set -eu
dated() { [ -z "${SOURCE_DATE_EPOCH:-}" ] || find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +; }
chmod -R u=rwX,go=rX "$1"
dated "$1"
# With that variable Python would compare each file with its source whenever it is imported.
env -u SOURCE_DATE_EPOCH python3 -m compileall -q -s "$1" -p / "$1"
dated "$1"
