#!/bin/sh
# Same contract as the official image: options or a *.conf alone start valkey-server; it drops root; protected mode is off.
set -e
case "${1:-}" in -*|*.conf) set -- valkey-server "$@" ;; esac
if [ "$1" = valkey-server ] && [ "$(id -u)" = 0 ]; then
    find . \! -user valkey -exec chown valkey '{}' +
    exec gosu valkey "$0" "$@"
fi
[ "$(umask)" != 0022 ] || umask 0077
if [ "$1" = valkey-server ]; then
    case "$*" in *protected-mode*) ;; *) set -- "$@" --protected-mode no ;; esac
fi
exec "$@"
