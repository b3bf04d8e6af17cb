#!/bin/sh
# Starts a sentinel, or with `account ROLE` tells a role's password and user. It writes what it knows of the cluster into its configuration, which it reads again when it restarts.
set -eu
host=$(uname -n)
# shellcheck source=/dev/null
. /usr/local/lib/celery-kit/keys.sh
user() { case $1 in operator) echo kit ;; *) echo "$1" ;; esac; }
hash() { tr -d '\n' < "$KEYS/$1" | sha256sum | cut -d ' ' -f 1; }
case ${1:-} in
    account) cat "$KEYS/$2"; echo; user "$2"; exit ;;
    renew | end-former) echo 'several servers share its passwords: they are made once' >&2; exit 1 ;;
esac
conf=/data/sentinel.conf
if [ -s "$conf" ]; then
    grep -v -e '^user ' -e '^sentinel auth-' -e '^sentinel sentinel-' "$conf" > "$conf.new"
else
    cat > "$conf.new" << END
port 26379
dir /data
protected-mode no
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $host
sentinel monitor celery-kit broker-1 6379 2
sentinel down-after-milliseconds celery-kit 3000
sentinel failover-timeout celery-kit 10000
sentinel parallel-syncs celery-kit 2
END
fi
ask='-@all +ping +hello +client|setinfo +client|setname +client|id +role +info
 +sentinel|masters +sentinel|master +sentinel|replicas +sentinel|slaves +sentinel|get-master-addr-by-name +sentinel|ckquorum'
{
    echo 'sentinel auth-user celery-kit sentinel'
    echo "sentinel auth-pass celery-kit $(cat "$KEYS/sentinel")"
    echo 'sentinel sentinel-user sentinel'
    echo "sentinel sentinel-pass $(cat "$KEYS/sentinel")"
    echo 'user default off'
    for role in $ROLES operator; do
        echo "user $(user "$role") on #$(hash "$role") $(echo "$ask" | tr -d '\n')"
    done
    for role in sentinel admin; do echo "user $role on #$(hash "$role") ~* &* +@all"; done
} >> "$conf.new"
mv "$conf.new" "$conf"
exec docker-entrypoint.sh redis-server "$conf" --sentinel
