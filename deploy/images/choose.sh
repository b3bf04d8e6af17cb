#!/bin/sh
# Chooses the base images that this machine builds on and runs: the official ones where a registry answers, stand-ins
# built from Debian's packages where none does. The choice is stored in .env, which Compose reads too. A value that is
# already there, or in the environment, is never changed. Prints one line for each decision.
# Arguments: a row of celery_kit/operate/stacks/pythons.py, which is a version of Python, its variable, the Debian release
# that has it (empty: no stand-in can be made), and the versions that a stand-in can be made of. Default: the row of the
# default version.
set -eu
cd "$(dirname "$0")/../.."

pull_seconds=${PULL_SECONDS:-120}
registry_seconds=10
suite=trixie
python=${1:-3.13} python_variable=${2:-PYTHON_IMAGE} python_suite=${3-$suite} standins=${4:-}
none="no registry answers, and Debian has no package"

say() { printf 'images: %s\n' "$*" >&2; }
refuse() { printf 'celery-kit: %s\n' "$*" >&2; exit 2; }
known() { eval "[ -n \"\${$1:-}\" ]" || grep -qs "^$1=." .env; }
remember() { printf '%s=%s\n' "$1" "$2" >> .env; }

# Arguments: seconds, a command. Without `timeout`, as on macOS, the command runs without a limit.
within() {
    seconds=$1
    shift
    if command -v timeout >/dev/null; then timeout "$seconds" "$@"; else "$@"; fi
}

# Asks only for the manifest first, so that a closed network does not cost the time limit of a pull.
official() {
    docker image inspect "$1" >/dev/null 2>&1 && return
    within "$registry_seconds" docker manifest inspect "$1" >/dev/null 2>&1 || return 1
    say "pulling $1"
    within "$pull_seconds" docker pull -q "$1" >/dev/null 2>&1
}

# Argument: a Debian release.
debian_base() {
    debian=celery-kit/debian:$1
    docker image inspect "$debian" >/dev/null 2>&1 && return
    [ "$(id -u)" -eq 0 ] && [ -f /etc/debian_version ] ||
        refuse "no registry answers, and base images can be built only by root on Debian or Ubuntu: set $python_variable and the variables of deploy/images/README.md in .env to images you have"
    command -v debootstrap >/dev/null || { apt-get update -qq >/dev/null; apt-get install -y -qq --no-install-recommends debootstrap >/dev/null 2>&1; }
    say "no registry answers: building $debian with debootstrap"
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(http[^ ]*\).*/\1/p' | head -n 1)
    # Uses the script of sid, which all releases share: a debootstrap that is older than a release does not know its name.
    debootstrap --variant=minbase "$1" "$root" "$mirror" /usr/share/debootstrap/scripts/sid >/tmp/celery-kit-debootstrap.log 2>&1 ||
        refuse "debootstrap could not build a base image: see /tmp/celery-kit-debootstrap.log"
    # As in the slim images: no documentation but the licences, no translations or package lists, neither here nor in what is
    # installed later.
    { printf 'path-exclude /usr/share/%s/*\n' doc man info locale lintian; echo 'path-include /usr/share/doc/*/copyright'; } \
        > "$root/etc/dpkg/dpkg.cfg.d/slim"
    find "$root/usr/share/doc" -type f ! -name copyright -delete
    printf 'Apt::Install-Recommends "false";\n' > "$root/etc/apt/apt.conf.d/slim"
    printf 'DPkg::Post-Invoke { "rm -rf /var/cache/apt/*.bin /var/cache/apt/archives/*.deb"; };\n' > "$root/etc/apt/apt.conf.d/clean"
    # The index of an unreleased version expires within a week, and a closed network's mirror may be older. Signatures are checked.
    printf 'Acquire::Check-Valid-Until "false";\n' > "$root/etc/apt/apt.conf.d/lag"
    printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d" && chmod +x "$root/usr/sbin/policy-rc.d"
    tar -C "$root" -c \
        --exclude=./usr/share/man/* --exclude=./usr/share/info/* --exclude=./usr/share/locale/* \
        --exclude=./var/lib/apt/lists/* --exclude=./var/cache/apt/* --exclude=./var/log/* --exclude=./dev/* . |
        docker import --change 'CMD ["bash"]' - "$debian" >/dev/null
    rm -rf "$root"
}

# .env names a stand-in that the engine no longer has: the engine is new, or was pruned.
standin_is_gone() { grep -qs "^$1=$2\$" .env && ! docker image inspect "$2" >/dev/null 2>&1; }

# Arguments: variable, official image, folder of the stand-in, its tag, its Debian release if it differs, build arguments.
choose() {
    if known "$1"; then
        standin_is_gone "$1" "$4" || return 0
    elif official "$2"; then
        say "$2 (official)"; remember "$1" "$2"; return
    fi
    debian_base "${5:-$suite}"
    say "building $4 from Debian's packages, in place of $2"
    docker build -q -t "$4" --build-arg "BASE=$debian" ${6:+--build-arg "$6"} "deploy/images/$3" >/dev/null || refuse "the stand-in $4 could not be built"
    known "$1" || remember "$1" "$4"
}

# Arguments: variable, official image, the message if it cannot be had. There is no stand-in.
only() {
    if known "$1"; then return; fi
    official "$2" || refuse "$3"
    say "$2 (official)"; remember "$1" "$2"
}

if [ -n "$python_suite" ]; then
    choose "$python_variable" "python:$python-slim-trixie" python "celery-kit/python:$python" "$python_suite" "PYTHON=$python"
else
    only "$python_variable" "python:$python-slim-trixie" "PYTHON=$python: $none of it; allowed here: $standins, or an image that you have as $python_variable in .env"
fi
# The brokers' compose files name the variable and the official image: `image: ${REDIS_IMAGE:-redis:8}`.
for folder in deploy/brokers/*; do
    name=${folder##*/}
    image=$(sed -n 's/^ *image: ${\([A-Z_]*\):-\([^}]*\)}$/\1 \2/p' "$folder/compose.yaml")
    [ -n "$image" ] || continue  # a cluster has the image of its product
    if grep -q 'extends: {file: \.\./[a-z]' "$folder/compose.yaml"; then  # a further product is for its own stack alone
        case ",${BROKER:-}," in *",$name,"*) ;; *) continue ;; esac
    fi
    tag=${image##*:}
    choose "${image% *}" "${image#* }" "$name" "celery-kit/$name:${tag%%-*}"
done
case ",${COMPOSE_PROFILES:-}," in *,monitor,*) choose PROMETHEUS_IMAGE prom/prometheus:v3.5.0 prometheus celery-kit/prometheus:2;; esac
case ",${COMPOSE_PROFILES:-}," in *,grafana,*) only   GRAFANA_IMAGE    grafana/grafana:12.2.0 "$none of Grafana: set GRAFANA_IMAGE in .env to an image that you have";; esac

# pip in a build may need this machine's certificate authorities and its index (build secrets, never in an image).
known CA_BUNDLE || { [ ! -f /etc/ssl/certs/ca-certificates.crt ] || remember CA_BUNDLE /etc/ssl/certs/ca-certificates.crt; }
