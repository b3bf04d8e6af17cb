#!/bin/sh
# Starts the server with its users. `kit`: the app's, with the commands that Celery and the kit need; `admin`: all of them; without a
# password a client may only ask whether the server lives.
set -eu
# shellcheck source=/dev/null
. /usr/local/lib/celery-kit/keys.sh
own=$KEYS
mkdir -p "$own"
secret "$own/app" "${REDIS_PASSWORD:-}"
secret "$own/admin" "${ADMIN_PASSWORD:-}"
hash() { tr -d '\n' < "$1" | sha256sum | cut -d ' ' -f 1; }
cat > "$own/users.acl" <<ACL
user default on nopass -@all +ping
user kit on #$(hash "$own/app") ~* &* +@all -@admin -@dangerous +info
user admin on #$(hash "$own/admin") ~* &* +@all
ACL
share "$own/app" "$KEY"
unset REDIS_PASSWORD ADMIN_PASSWORD
exec docker-entrypoint.sh redis-server /usr/local/etc/redis/redis.conf --aclfile "$own/users.acl" "$@"
