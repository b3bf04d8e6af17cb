#!/bin/sh
# Same contract as the official image: it drops root, and refuses variables that the official image no longer supports.
set -e
if [ "$1" = rabbitmq-server ] && [ "$(id -u)" = 0 ]; then
    find /var/lib/rabbitmq \! -user rabbitmq -exec chown rabbitmq '{}' +
    exec gosu rabbitmq "$0" "$@"
fi
gone=$(env | sed -n 's/^\(RABBITMQ_[A-Z_]*_\(PASS\|USER\)_FILE\|RABBITMQ_SSL_[A-Z_]*\|RABBITMQ_VM_MEMORY_HIGH_WATERMARK\)=.*/\1/p')
if [ "$1" = rabbitmq-server ] && [ -n "$gone" ]; then
    echo >&2 "error: these variables are set, but no longer used: $gone"
    exit 1
fi
exec "$@"
