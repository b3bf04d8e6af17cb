#!/bin/sh
# Runs targets of the Makefile one after the other, and notes in .kit/stages how long each took: `make test`.
set -eu
cd "$(dirname "$0")/.."
unset MAKEFLAGS MFLAGS  # of a make that runs several at once
for stage; do
    began=$(date +%s)
    make --no-print-directory "$stage"
    printf '%-15s %5d s\n' "$stage" $(($(date +%s) - began)) | tee -a .kit/stages
done
