#!/bin/bash
# Starts a node as the server of a stack with one node is started (server.sh), after the one that comes first has made what they
# share: the passwords, and the cookie by which nodes know each other. Its arguments are those of server.sh, and
#   healthy      exits with 0 if this node serves, and all nodes are members of its cluster
set -eu
NODES=3
# The address of a name; nodes have one in each of their networks.
at() { getent hosts "$1" | cut -d ' ' -f 1; }

case ${1:-} in
    '') ;;
    healthy)
        { read -r secret; read -r user; } < <("$0" account monitor; echo)
        page=15672
        [ -z "${SECURE:-}" ] || page=15673
        exec 3<>/dev/tcp/127.0.0.1/5672 4<>/dev/tcp/127.0.0.1/$page
        login=$(printf %s "$user:$secret" | base64 -w 0)
        printf 'GET /api/nodes?columns=name HTTP/1.0\r\nAuthorization: Basic %s\r\n\r\n' "$login" >&4
        [ "$(timeout 5 cat <&4 | grep -o 'rabbit@[a-z0-9-]*' | sort -u | wc -l)" -eq "$NODES" ]
        exit ;;
    *) exec bash /usr/local/lib/celery-kit/server.sh "$@" ;;
esac

umask 077
mkdir -p "$KEYS"
exec 8> "$KEYS/cookie.lock"
flock 8
if [ ! -s "$KEYS/cookie" ]; then
    head -c 48 /dev/urandom | base64 | tr -d '+/=\n' > "$KEYS/cookie.new"
    chmod 400 "$KEYS/cookie.new" && mv "$KEYS/cookie.new" "$KEYS/cookie"
fi
exec 8>&-
rm -f "$HOME/.erlang.cookie"
install -m 400 "$KEYS/cookie" "$HOME/.erlang.cookie"

# Erlang's own ports, 4369 and 25672, are open in the nodes' network alone. A node that is cut from it waits.
until address=$(at "${RABBITMQ_NODENAME#*@}") && [ -n "$address" ]; do sleep 1; done
export ERL_EPMD_ADDRESS=$address
args=${RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS/127,0,0,1/${address//./,}}
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="$args -eval file:eval(\"/usr/local/lib/celery-kit/watch.erl\")."
METRICS_ADDRESS=$(at "$HOSTNAME-metrics" || true)
export METRICS_ADDRESS
exec bash /usr/local/lib/celery-kit/server.sh
