#!/bin/sh
# healthy:       the worker is connected, its loop runs, and it takes waiting messages. For readiness, and for Compose.
# healthy live:  the worker need not be replaced: as above, or it waits for its broker. For liveness.
# Starts no other program, not even for the time, so a check costs a millisecond. It reads what celery_kit/observe/health.py writes.
runs() {
    read -r stat < "/proc/$1/stat" || return 1
    stat=${stat##*) }
    case ${stat%% *} in T | t | Z | X) return 1 ;; esac  # stopped or dead
}

file=${HEARTBEAT_FILE:?}
if { read -r pid until < "$file"; } 2>/dev/null; then
    read -r now _ < /proc/uptime
    [ "${now%.*}" -le "$until" ] && runs "$pid"
else
    [ "${1:-}" = live ] && { read -r pid < "$file.alive"; } 2>/dev/null && runs "$pid"
fi 2>/dev/null
