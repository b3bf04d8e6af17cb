#!/bin/sh
# `place FOLDER`: prepares code below FOLDER for /, such that a second build makes the same layer. It is byte-compiled, every user may
# read it, whatever its modes are in the checkout, and its times are fixed. For deploy/Dockerfile.
set -eu
chmod -R u=rwX,go=rX "$1"
find "$1" -exec touch -h -d 2020-01-01 {} +
python3 -m compileall -q -s "$1" -p / "$1"
find "$1" -exec touch -h -d 2020-01-01 {} +
