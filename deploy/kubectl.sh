#!/bin/sh
# Gets kubectl, which renders Kubernetes' folders, where there is none: from Debian's packages, into .kit/bin/. Asks no cluster.
# Needs apt, and no root; another system's kubectl is installed by hand.
set -eu
cd "$(dirname "$0")/.."
for name in kubectl .kit/bin/kubectl; do
    if "$name" kustomize --help >/dev/null 2>&1; then exit 0; fi
done
refuse() { printf 'celery-kit: %s\n' "$*" >&2; exit 2; }
{ command -v apt-get && command -v dpkg-deb; } >/dev/null || refuse "kubectl is not there, and can be had from Debian's packages alone: install it"
uris=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs: *\([^ ]*debian\)\/*$/\1/p; s/^deb \(http[^ ]*debian\)\/* .*/\1/p' | head -n 1)
[ -n "$uris" ] || refuse "kubectl is not there, and no source of Debian's packages is known: install it"

# An index of its own: kubectl 1.32, with kustomize 5, is in trixie, and this system's sources stay as they are.
work=$PWD/.kit/kubectl
rm -rf "$work"
mkdir -p "$work/lists/partial" "$work/archives/partial" .kit/bin
cat > "$work/trixie.sources" <<SOURCES
Types: deb
URIs: $uris
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
cat > "$work/apt.conf" <<CONF
Dir::State "$work";
Dir::State::status "/dev/null";
Dir::Cache "$work";
Dir::Etc::sourcelist "$work/trixie.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Check-Valid-Until "false";
CONF
export APT_CONFIG="$work/apt.conf"
{ apt-get update -qq && cd "$work" && apt-get download -qq kubectl && cd ../..; } >"$work/log" 2>&1 ||
    refuse "kubectl could not be had from Debian's packages: see $work/log"
dpkg-deb --fsys-tarfile "$work"/kubectl_*.deb | tar -xO ./usr/bin/kubectl > .kit/bin/kubectl.new
chmod +x .kit/bin/kubectl.new
mv .kit/bin/kubectl.new .kit/bin/kubectl
mv "$work/log" .kit/kubectl.log && rm -rf "$work"
