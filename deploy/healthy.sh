#!/bin/sh
# Healthy: HEARTBEAT_FILE was touched within the last HEARTBEAT_SECONDS. Starts no Python: a probe costs milliseconds.
[ -n "$(find "$HEARTBEAT_FILE" -newermt "-${HEARTBEAT_SECONDS:-30} seconds" 2>/dev/null)" ]
