"""The throughput of a producer: `python -m bench.publish WAY NUMBER` sends NUMBER tasks, and prints the cost as JSON.

Plain Celery is an app with the same broker, results server, queue type and confirms, and none of the kit's code.
"""

import json
import sys
import time
from typing import Any

QUEUE = "bench.publish"
#: By WAY: the factor by which it sends more tasks in a round.
WAYS = {"plain delay": 1, "kit delay": 1, "kit send_many": 10}


def _plain() -> Any:
    from celery import Celery

    kits = _kit().conf
    app = Celery("plain", broker=kits.broker_url, backend=kits.result_backend, set_as_current=False)
    same = ("task_default_queue_type", "task_default_exchange_type")
    app.conf.update({name: kits[name] for name in same})
    if confirm := kits.broker_transport_options.get("confirm_publish"):
        app.conf.broker_transport_options = {"confirm_publish": confirm}
    return app


def _kit() -> Any:
    from app import app

    return app


def measure(way: str, number: int) -> dict[str, float]:
    """Send `number` tasks. Returns tasks/s and the process's CPU in microseconds a task."""
    app = (_plain if way == "plain delay" else _kit)()
    app.conf.task_default_queue = QUEUE

    @app.task(name="bench.add")  # type: ignore[untyped-decorator,unused-ignore]
    def add(x: int, y: int) -> int:
        return x + y

    for warm in range(20):
        add.delay(warm, warm)
    wall, cpu = time.perf_counter(), time.process_time()
    if way == "kit send_many":
        from celery_kit.produce.send import send_many

        send_many("bench.add", [(n, n) for n in range(number)])
    else:
        for n in range(number):
            add.delay(n, n)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"rate": number / wall, "cpu": cpu / number * 1e6}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
