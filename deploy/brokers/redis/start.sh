#!/bin/sh
# Starts the server with its users (users.acl), or has the running one take other certificates or passwords:
#   account ROLE the role's password and user
#   reload       its certificate again: `make certificates RENEW=1`
#   renew        new passwords; the former ones stay valid: `make passwords RENEW=1`
#   end-former   the former ones are valid no longer: `make passwords RENEW=end`
set -eu
# shellcheck source=/dev/null
. /usr/local/lib/celery-kit/keys.sh
own=$KEYS all="$ROLES operator" server=${SERVER:-redis} acl=${ACL_FILE:-$KEYS/users.acl}
hash() { tr -d '\n' < "$1" | sha256sum | cut -d ' ' -f 1; }
as_admin() {
    by=
    [ -z "${SECURE:-}" ] || by='-s /tmp/redis.sock'
    # shellcheck disable=SC2086
    said=$(REDISCLI_AUTH=$(cat "$own/admin") "$server-cli" $by --no-auth-warning --user admin "$@")
    [ "$said" = OK ] || { echo "$said"; exit 1; }
}
user() { case $1 in operator) echo kit ;; *) echo "$1" ;; esac; }
case ${1:-} in renew | end-former)
    [ -z "${ACL_FILE:-}" ] || { echo 'several servers share its passwords: they are made once' >&2; exit 1; } ;;
esac
case ${1:-} in
    reload) as_admin config set tls-cert-file /tls/server.pem tls-key-file /tls/server.pem tls-ca-cert-file /tls/ca.pem; exit ;;
    account) cat "$own/$2"; echo; user "$2"; exit ;;
    renew)
        for role in $all; do
            [ "$role" != operator ] || [ -z "${REDIS_PASSWORD:-}" ] || continue  # it was chosen by hand
            rm -f "$own/$role.next" && secret "$own/$role.next"
            as_admin acl setuser "$(user "$role")" "#$(hash "$own/$role.next")"
            mv "$own/$role.next" "$own/$role"
            [ "$role" = operator ] || share "$role" "$own/$role" "$role"
        done
        exit ;;
    end-former)
        for role in $all; do as_admin acl setuser "$(user "$role")" resetpass "#$(hash "$own/$role")"; done
        if [ -z "${ADMIN_PASSWORD:-}" ]; then
            rm -f "$own/admin.next" && secret "$own/admin.next"
            as_admin acl setuser admin resetpass "#$(hash "$own/admin.next")"
            mv "$own/admin.next" "$own/admin"
        fi
        exit ;;
esac

mkdir -p "$own"
for role in $ROLES; do secret "$own/$role" "$(given "$role")" && share "$role" "$own/$role" "$role"; done
secret "$own/operator" "${REDIS_PASSWORD:-$(given operator)}"
secret "$own/admin" "${ADMIN_PASSWORD:-$(given admin)}"
# The pattern of a UUID.
four='[0-9a-f][0-9a-f][0-9a-f][0-9a-f]'
replies="$four$four-$four-$four-$four-$four$four$four"
# Patterns of all broadcasts' channels, /DATABASE.EXCHANGE, but those that begin with the exchange of remote control.
events='' begun='' rest=celery.pidbox
while [ -n "$rest" ]; do
    next=${rest%"${rest#?}"} rest=${rest#?}
    for base in '*/[0-9].' '*/[0-9][0-9].'; do events="$events \\&$base${begun}[^$next]*${begun:+ \\&$base$begun}"; done
    begun=$begun$next
done
lines=$(sed -e '/^#/d' -e '/^$/d' -e "s|@REPLIES@|$replies|g" -e "s|@EVENTS@|${events# }|g" /usr/local/lib/celery-kit/*.acl |
    tr '\n' ' ' | sed 's/ user /\nuser /g')
# A cluster's servers have further users, for each other: MORE_ROLES.
: > "$acl"
for role in default $all ${MORE_ROLES:-} admin; do
    line=$(printf '%s\n' "$lines" | grep "^user $(user "$role") ")
    [ "$role" = default ] || line=$(printf %s "$line" | sed "s/@PASSWORD@/$(hash "$own/$role")/")
    printf '%s\n' "$line" >> "$acl"
done
if [ -n "${SECURE:-}" ]; then
    asks=no
    [ "$SECURE" != mutual ] || asks=yes
    # The socket is for the health check, and for the commands above.
    set -- --port 0 --unixsocket /tmp/redis.sock --tls-port 6379 --tls-cert-file /tls/server.pem --tls-key-file /tls/server.pem \
        --tls-ca-cert-file /tls/ca.pem --tls-auth-clients "$asks" --tls-protocols "TLSv1.2 TLSv1.3" "$@"
fi
unset REDIS_PASSWORD ADMIN_PASSWORD
exec docker-entrypoint.sh "$server-server" "${CONFIG:-/usr/local/etc/redis/redis.conf}" --aclfile "$acl" "$@"
