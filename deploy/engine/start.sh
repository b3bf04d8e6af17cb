#!/bin/sh
# Installs a Docker engine from the distribution's packages and starts it.
# Does nothing where `docker info` and `docker compose` answer. Needs root on Debian or Ubuntu; elsewhere: one line, exit code 2.
set -eu

wait_seconds=60
answer_seconds=20
log=/var/log/dockerd.log
# The suite that four packages for Debian 12 come from: its own Compose is 1.29, which cannot read our files.
borrowed_suite=trixie
borrowed_packages="docker.io docker-cli docker-compose docker-buildx"

say() { printf 'engine: %s\n' "$*" >&2; }
refuse() { printf 'celery-kit: %s\n' "$*" >&2; exit 2; }
# An engine that hangs never answers, so the question has a time limit; without `timeout`, as on macOS, it has none.
within() { if command -v timeout >/dev/null; then timeout "$answer_seconds" "$@"; else "$@"; fi; }
answers() { within docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1; }

borrow_from_next_suite() {
    sources=/etc/apt/sources.list.d/celery-kit-$borrowed_suite
    if [ -f /etc/apt/sources.list.d/debian.sources ]; then
        # The first stanza only (the archive, not the security mirror, whose suites have other names).
        awk 'NF == 0 && seen { exit } /^[^#]/ { seen = 1 } { print }' /etc/apt/sources.list.d/debian.sources |
            sed "s/^Suites:.*/Suites: $borrowed_suite/" > "$sources.sources"
    else
        sed -n "s/^\(deb .*\) bookworm main.*/\1 $borrowed_suite main/p" /etc/apt/sources.list | head -n 1 > "$sources.list"
    fi
    cat > "/etc/apt/preferences.d/celery-kit-$borrowed_suite" <<PIN
Package: *
Pin: release n=$borrowed_suite
Pin-Priority: -1

Package: $borrowed_packages
Pin: release n=$borrowed_suite
Pin-Priority: 990
PIN
}

install_packages() {
    # shellcheck source=/dev/null
    . /etc/os-release
    case "$ID:${VERSION_ID:-}" in
        debian:12) borrow_from_next_suite; packages="docker.io docker-cli docker-compose docker-buildx" ;;
        debian:*) packages="docker.io docker-cli docker-compose docker-buildx" ;;
        ubuntu:*) packages="docker.io docker-compose-v2 docker-buildx" ;;
        *) refuse "no Docker engine answers, and $ID is not a system that 'make engine' can install one on (Debian, Ubuntu): install Docker with Compose v2 and buildx" ;;
    esac
    say "installing $packages iptables ca-certificates"
    apt-get update -qq >/dev/null
    # shellcheck disable=SC2086  # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages iptables ca-certificates >/tmp/celery-kit-engine.log 2>&1 ||
        refuse "the packages of the Docker engine could not be installed: see /tmp/celery-kit-engine.log"
}

start_daemon() {
    if [ -d /run/systemd/system ]; then
        systemctl start docker
    else
        say "starting dockerd, its log is $log"
        setsid dockerd >"$log" 2>&1 </dev/null &
    fi
    tries=$((wait_seconds * 2))
    until answers; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || refuse "dockerd did not answer within $wait_seconds s: see $log"
        sleep 0.5
    done
}

answers && exit 0
code=0
within docker info >/dev/null 2>&1 || code=$?
[ "$code" -ne 124 ] || refuse "the Docker engine does not answer within $answer_seconds s: restart it, or see its log"
[ -f /etc/os-release ] || refuse "no Docker engine answers, and this system is not Debian or Ubuntu: install Docker with Compose v2 and buildx"
[ "$(id -u 2>/dev/null)" = 0 ] || refuse "no Docker engine answers, and only root can install or start one: run 'sudo make engine', or start your Docker engine"
if ! command -v dockerd >/dev/null || ! docker compose version >/dev/null 2>&1 || ! docker buildx version >/dev/null 2>&1; then install_packages; fi
docker info >/dev/null 2>&1 || start_daemon
answers || refuse "the Docker engine answers, but 'docker compose' or 'docker buildx' does not: install both plugins"
say "$(docker version --format 'Docker {{.Server.Version}}'), Compose $(docker compose version --short)"
