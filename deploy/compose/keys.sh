#!/bin/sh
# Sourced where a server starts: its passwords, which are made once, with its data, in the folder $KEYS.
umask 077

# The roles whose passwords the containers of a stack have, in the volume `keys`; `operator` and `admin` are in no volume.
# shellcheck disable=SC2034  # used by each start.sh
ROLES='producer worker beat monitor'
# The group that may read a role's password there: compose.*.yaml gives it to those containers.
group() { case $1 in producer) echo 20001 ;; worker) echo 20002 ;; beat) echo 20003 ;; monitor) echo 20004 ;; esac; }

# secret FILE [GIVEN]: put GIVEN into FILE; without it, keep what is there, or make a random one of 190 bits.
secret() {
    draft=$1.$(uname -n).new  # several servers may share the folder
    if [ -n "${2:-}" ]; then printf %s "$2" > "$draft"
    elif [ ! -s "$1" ]; then head -c 24 /dev/urandom | base64 | tr -d '+/=\n' > "$draft"
    else return 0; fi
    mv "$draft" "$1"
}

# given ROLE: the password that this server is given, where a swarm has made it as a secret; else nothing.
given() { [ ! -r "/run/secrets/$KEY.$1" ] || head -n 1 "/run/secrets/$KEY.$1"; }
case ${1:-} in renew | end-former)
    [ -z "$(given worker)" ] || { echo 'its passwords are secrets of a swarm: make stack RENEW=1' >&2; exit 1; } ;;
esac

# share ROLE FILE USER: hand a password and, on the second line, its user to the containers of a role. They can only read them.
share() {
    [ -w /var/tmp ] || return 0  # in a swarm there is no volume to share
    shared=/var/tmp/$KEY.$1
    draft=$shared.$(uname -n).new
    { cat "$2"; echo; echo "$3"; } > "$draft"
    # Without the groups of a stack there is nobody to share with.
    ! chgrp "$(group "$1")" "$draft" 2>/dev/null || chmod 440 "$draft"
    mv -f "$draft" "$shared"
}
