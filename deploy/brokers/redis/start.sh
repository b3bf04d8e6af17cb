#!/bin/sh
# Starts the server with its users. `kit`: the app's, with the commands that Celery and the kit need; `admin`: all of them. Nobody can
# be `default`; it has all rights because Redis 8.0 reads its own file as that user, and skips transactions that it has no right to
# (github.com/redis/redis/issues/14541).
set -eu
if [ "${1:-}" = reload ]; then  # its certificate again: `make certificates RENEW=1`
    REDISCLI_AUTH=$(cat "$KEYS/admin") && export REDISCLI_AUTH
    said=$(redis-cli -s /tmp/redis.sock --no-auth-warning --user admin config set \
        tls-cert-file /tls/server.pem tls-key-file /tls/server.pem tls-ca-cert-file /tls/ca.pem)
    [ "$said" = OK ] || { echo "$said"; exit 1; }
    exit
fi
# shellcheck source=/dev/null
. /usr/local/lib/celery-kit/keys.sh
own=$KEYS
mkdir -p "$own"
secret "$own/app" "${REDIS_PASSWORD:-}"
secret "$own/admin" "${ADMIN_PASSWORD:-}"
hash() { tr -d '\n' < "$1" | sha256sum | cut -d ' ' -f 1; }
cat > "$own/users.acl" <<ACL
user default off ~* &* +@all
user kit on #$(hash "$own/app") ~* &* +@all -@admin -@dangerous +info
user admin on #$(hash "$own/admin") ~* &* +@all
ACL
share "$own/app" "$KEY"
if [ -n "${SECURE:-}" ]; then
    asks=no
    [ "$SECURE" != mutual ] || asks=yes
    # The socket is for the health check and for `reload`.
    set -- --port 0 --unixsocket /tmp/redis.sock --tls-port 6379 --tls-cert-file /tls/server.pem --tls-key-file /tls/server.pem \
        --tls-ca-cert-file /tls/ca.pem --tls-auth-clients "$asks" --tls-protocols "TLSv1.2 TLSv1.3" "$@"
fi
unset REDIS_PASSWORD ADMIN_PASSWORD
exec docker-entrypoint.sh redis-server /usr/local/etc/redis/redis.conf --aclfile "$own/users.acl" "$@"
