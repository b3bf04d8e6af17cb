#!/bin/sh
# Starts one server of a cluster, in the role that it had: sentinels have it write that into its configuration, in $CONFIG. At
# its first start it is a replica of `broker-1`, or that itself.
set -eu
host=$(uname -n)
# shellcheck source=/dev/null
. /usr/local/lib/celery-kit/keys.sh
mkdir -p "$KEYS"
for role in $MORE_ROLES; do secret "$KEYS/$role"; done
if [ -e "$CONFIG" ]; then primary=$(sed -n 's/^replicaof //p' "$CONFIG")
elif [ "$host" = broker-1 ]; then primary=
else primary='broker-1 6379'; fi
{
    echo 'include /usr/local/etc/redis/redis.conf'
    # Sentinels and replicas know each other by name: a container that starts again may have another address.
    echo "replica-announce-ip $host"
    echo 'masteruser replica'
    echo "masterauth $(cat "$KEYS/replica")"
    # A primary that is cut off from its replicas refuses to write: another one has taken its place.
    echo 'min-replicas-to-write 1'
    echo 'min-replicas-max-lag 5'
    [ -z "$primary" ] || echo "replicaof $primary"
} > "$CONFIG.new"
mv "$CONFIG.new" "$CONFIG"
exec sh /usr/local/bin/start.sh "$@"
