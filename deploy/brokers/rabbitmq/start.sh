#!/bin/bash
# Starts the server with its users and its virtual host, as definitions that it loads. `kit`: the app's, with all rights in the
# virtual host, and none to administrate; `admin`: all rights.
set -eu
# Its certificate again: `make certificates RENEW=1`.
[ "${1:-}" != reload ] || exec rabbitmqctl --quiet eval 'ssl:clear_pem_cache().'
# shellcheck source=/dev/null
. /usr/local/lib/celery-kit/keys.sh
own=$KEYS
mkdir -p "$own"
user=${RABBITMQ_DEFAULT_USER:-kit} vhost=${RABBITMQ_DEFAULT_VHOST:-kit}
secret "$own/app" "${RABBITMQ_DEFAULT_PASS:-}"
secret "$own/admin" "${ADMIN_PASSWORD:-}"

json() { printf %s "$1" | sed 's/[\\"]/\\&/g'; }
bytes() { for two in $(printf %s "$1" | sed 's/../& /g'); do printf %b "\\x$two"; done; }
# RabbitMQ's own form: four random bytes, and the SHA-256 of these and the password, in base 64.
hash() {
    salt=$(head -c 4 /dev/urandom | od -An -tx1 | tr -d ' \n')
    sum=$({ bytes "$salt"; cat "$1"; } | sha256sum | cut -d ' ' -f 1)
    bytes "$salt$sum" | base64 -w 0
}
account() { printf '{"name": "%s", "password_hash": "%s", "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": ["%s"]}' "$1" "$2" "$3"; }
may() { printf '{"user": "%s", "vhost": "%s", "configure": ".*", "write": ".*", "read": ".*"}' "$1" "$(json "$vhost")"; }
cat > "$own/definitions.json" <<JSON
{"users": [$(account "$(json "$user")" "$(hash "$own/app")" monitoring), $(account admin "$(hash "$own/admin")" administrator)],
 "vhosts": [{"name": "$(json "$vhost")"}],
 "permissions": [$(may "$(json "$user")"), $(may admin)]}
JSON
share "$own/app" "$KEY"
# Read by listeners-tls.conf.
export TLS_VERIFY=verify_none TLS_ASKED=false
[ "${SECURE:-}" != mutual ] || export TLS_VERIFY=verify_peer TLS_ASKED=true
# Its metrics: on its address in the network that only Prometheus is on too. Without that network, on 127.0.0.1.
METRICS_ADDRESS=$(getent hosts broker-metrics | cut -d ' ' -f 1 || true)
export METRICS_ADDRESS=${METRICS_ADDRESS:-127.0.0.1}
unset RABBITMQ_DEFAULT_USER RABBITMQ_DEFAULT_PASS RABBITMQ_DEFAULT_VHOST ADMIN_PASSWORD
exec docker-entrypoint.sh rabbitmq-server
