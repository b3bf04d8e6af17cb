#!/bin/sh
# Same contract as the official image: options or a *.conf alone start redis-server; it drops root; protected mode is off.
set -e
case "${1:-}" in -*|*.conf) set -- redis-server "$@" ;; esac
if [ "$1" = redis-server ] && [ "$(id -u)" = 0 ]; then
    find . \! -user redis -exec chown redis '{}' +
    exec gosu redis "$0" "$@"
fi
[ "$(umask)" != 0022 ] || umask 0077
if [ "$1" = redis-server ]; then
    case "$*" in *protected-mode*) ;; *) set -- "$@" --protected-mode no ;; esac
fi
exec "$@"
