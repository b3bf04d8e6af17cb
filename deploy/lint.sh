#!/bin/sh
# Checks style, types, layers, shell scripts, Dockerfiles and workflows, and that the tables in README and docs match the code.
set -eu
cd "$(dirname "$0")/.."
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports --no-cache >/dev/null || .venv/bin/lint-imports --no-cache
.venv/bin/python -m docs.generate --check
git ls-files -z '*.sh' .ci/run | xargs -0 .venv/bin/shellcheck
git ls-files -z '*Dockerfile' | xargs -0 .venv/bin/hadolint
.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
.venv/bin/jactionlint --profile correctness --shellcheck .venv/bin/shellcheck .github/workflows/*.yml  # actionlint's checks, from a package that holds the program
.venv/bin/check-jsonschema --quiet --builtin-schema vendor.renovate renovate.json
