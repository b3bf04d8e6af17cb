#!/bin/bash
# Starts the server with its users and its virtual host, as definitions that it loads (permissions), or has the running one take
# other certificates or passwords:
#   account ROLE the role's password and user
#   reload       its certificate again: `make certificates RENEW=1`
#   renew        new passwords; the former ones stay valid: `make passwords RENEW=1`
#   end-former   the former ones are valid no longer: `make passwords RENEW=end`
#
# A user has one password here. So a role has two users, whose names differ by `-2`: `renew` gives the other one a password, and
# `end-former` takes it from the former. RabbitMQ asks for it when a client connects; open connections stay.
set -eu
[ "${1:-}" != reload ] || exec rabbitmqctl --quiet eval 'ssl:clear_pem_cache().'
# shellcheck source=/dev/null
. /usr/local/lib/celery-kit/keys.sh
own=$KEYS all="$ROLES operator" loaded=/var/lib/rabbitmq/celery-kit/definitions.json
vhost=${RABBITMQ_DEFAULT_VHOST:-kit}

json() { printf %s "$1" | sed 's/[\\"]/\\&/g'; }
bytes() { for two in $(printf %s "$1" | sed 's/../& /g'); do printf %b "\\x$two"; done; }
# RabbitMQ's own form: four random bytes, and the SHA-256 of these and the password, in base 64.
hash() {
    salt=$(head -c 4 /dev/urandom | od -An -tx1 | tr -d ' \n')
    sum=$({ bytes "$salt"; cat "$1"; } | sha256sum | cut -d ' ' -f 1)
    bytes "$salt$sum" | base64 -w 0
}
# The user of a file of $KEYS: its role, or the app's user of RabbitMQ's own variable.
user() { printf %s "${1/#operator/${RABBITMQ_DEFAULT_USER:-kit}}"; }
# The file of a role's present user.
now() { cat "$own/$1.now" 2>/dev/null || echo "$1"; }
other() { [ "$(now "$1")" != "$1" ] && echo "$1" || echo "$1-2"; }

# definitions: all users that have a password, with their rights.
definitions() {
    four='[0-9a-f]{4}'
    replies="[0-9a-f]{8}-$four-$four-$four-[0-9a-f]{12}"
    accounts='' rights=''
    # shellcheck disable=SC2034  # the last three are read by their names
    while read -r role tag configure write read; do
        for one in "$role" "$role-2"; do
            [ -s "$own/$one" ] || continue
            name=$(json "$(user "$one")")
            accounts+="${accounts:+, }{\"name\": \"$name\", \"password_hash\": \"$(hash "$own/$one")\", \"hashing_algorithm\": \"rabbit_password_hashing_sha256\", \"tags\": [${tag/#-/}]}"
            rights+="${rights:+, }{\"user\": \"$name\", \"vhost\": \"$(json "$vhost")\""
            for kind in configure write read; do rights+=", \"$kind\": \"$(json "${!kind//@REPLIES@/$replies}")\""; done
            rights+='}'
        done
    done < <(sed -e '/^#/d' -e 's/ \(monitoring\|administrator\) / "\1" /' /usr/local/lib/celery-kit/permissions)
    printf '{"users": [%s], "vhosts": [{"name": "%s"}], "permissions": [%s]}\n' "$accounts" "$(json "$vhost")" "$rights"
}
take() {
    definitions > "$loaded"
    rabbitmqctl --quiet import_definitions "$loaded"
}
case ${1:-} in
    account) cat "$own/$(now "$2")"; echo; user "$(now "$2")"; exit ;;
    renew)
        for role in $all; do
            [ "$role" != operator ] || [ -z "${RABBITMQ_DEFAULT_PASS:-}" ] || continue  # it was chosen by hand
            rm -f "$own/$(other "$role")" && secret "$own/$(other "$role")"
        done
        take
        for role in $all; do
            [ "$role" != operator ] || [ -z "${RABBITMQ_DEFAULT_PASS:-}" ] || continue
            other "$role" > "$own/$role.new" && mv "$own/$role.new" "$own/$role.now"
            [ "$role" = operator ] || share "$role" "$own/$(now "$role")" "$(now "$role")"
        done
        exit ;;
    end-former)
        for role in $all; do
            [ ! -s "$own/$(other "$role")" ] || { rm "$own/$(other "$role")" && secret "$own/$(other "$role")"; }  # nobody's
        done
        [ -n "${ADMIN_PASSWORD:-}" ] || { rm -f "$own/admin" && secret "$own/admin"; }
        take
        exit ;;
esac

mkdir -p "$own" "$(dirname "$loaded")"
exec 9> "$own/lock"
flock 9  # nodes of a cluster share the folder: the first makes them
secret "$own/operator" "${RABBITMQ_DEFAULT_PASS:-$(given operator)}"
secret "$own/admin" "${ADMIN_PASSWORD:-$(given admin)}"
for role in $ROLES; do secret "$own/$role" "$(given "$role")" && share "$role" "$own/$(now "$role")" "$(now "$role")"; done
definitions > "$loaded"
exec 9>&-
# Read by listeners-tls.conf.
export TLS_VERIFY=verify_none TLS_ASKED=false
[ "${SECURE:-}" != mutual ] || export TLS_VERIFY=verify_peer TLS_ASKED=true
# Its metrics: on its address in the network that only Prometheus is on too. Without that network, on 127.0.0.1.
# In a swarm that address has no name before the server is healthy, so METRICS_ADDRESS is given.
METRICS_ADDRESS=${METRICS_ADDRESS:-$(getent hosts broker-metrics | cut -d ' ' -f 1 || true)}
export METRICS_ADDRESS=${METRICS_ADDRESS:-127.0.0.1}
unset RABBITMQ_DEFAULT_USER RABBITMQ_DEFAULT_PASS RABBITMQ_DEFAULT_VHOST ADMIN_PASSWORD
exec docker-entrypoint.sh rabbitmq-server
