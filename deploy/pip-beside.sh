#!/bin/sh
# `pip-beside.sh KIT NEW FILE`: make NEW, an environment that sees the packages of the environment KIT and holds what the
# requirements in FILE need beside them; no package of KIT is replaced. For deploy/Dockerfile, and for stacks without Docker.
# pip asks for hashes where FILE has some.
set -eu
kit=$1 new=$2 file=$3
[ ! -s /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca
[ ! -s /run/secrets/pip ] || export PIP_CONFIG_FILE=/run/secrets/pip
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_PROGRESS_BAR=off PIP_NO_INPUT=1
packages() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

"$kit/bin/python" -m venv --without-pip --clear "$new"
packages "$kit" > "$(packages "$new")/kit.pth"
{ printf '#!%s\n' "$new/bin/python"; tail -n +2 "$kit/bin/celery"; } > "$new/bin/celery"
chmod +x "$new/bin/celery"
${PIP:-pip} --python "$kit/bin/python" list --format freeze > "$new/kit.txt"
${PIP:-pip} --python "$new/bin/python" install --no-cache-dir --constraint "$new/kit.txt" --requirement "$file"
