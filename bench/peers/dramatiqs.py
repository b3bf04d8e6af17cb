"""dramatiq: `dramatiq bench.peers.dramatiqs`. It acknowledges after the task; results go to Redis."""

import os
import sys
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from bench.peers.work import WORK

_url = os.environ["BROKER_URL"]
broker: Any = RedisBroker(url=_url) if _url.startswith("redis") else RabbitmqBroker(url=_url)
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["RESULTS_URL"])))
dramatiq.set_broker(broker)
actors = {name: dramatiq.actor(work, store_results=True, queue_name="bench") for name, work in WORK.items()}

if __name__ == "__main__":
    text = "x" * int(sys.argv[3])
    for _ in range(int(sys.argv[1])):
        actors[sys.argv[2]].send(text)
