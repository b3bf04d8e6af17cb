"""The app under test: the kit's, or with ENGINE=celery plain Celery's. Its tasks count their runs independently of Celery.

`python -m tests.crash.work` is a producer: each line of its input has a task's name and a number. It prints the line again when
these tasks have been sent.
"""

import json
import os
import sys
import time
from typing import Any

from celery import Celery
from redis import Redis

app: Celery
if os.environ.get("ENGINE") == "celery":
    app = Celery("plain", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
    app.conf.task_acks_late = True  # losses by early acknowledgement would be no fault
else:
    from app import app

    app.conf.imports = ()
if options := json.loads(os.environ.get("TRANSPORT_OPTIONS") or "{}"):
    app.conf.broker_transport_options = {**(app.conf.broker_transport_options or {}), **options}
runs: Any = Redis.from_url(os.environ["RUNS"])


@app.task(name="crash.short")
def short(number: int) -> int:
    runs.hincrby("runs", str(number), 1)
    time.sleep(0.002)  # the work: long enough that a kill interrupts it
    return number


@app.task(name="crash.nothing")
def nothing(number: int) -> int:
    runs.hincrby("runs", str(number), 1)
    return number


@app.task(name="crash.held")
def held(number: int) -> int:
    """The first run does not end."""
    if runs.hincrby("runs", str(number), 1) == 1:
        time.sleep(200)  # the work, which a kill ends
    return number


def main() -> None:
    sent, queue = 0, os.environ["QUEUE"]
    with app.producer_pool.acquire(block=True) as producer:
        for line in sys.stdin:
            name, count = line.split()
            for number in range(sent, sent + int(count)):
                app.send_task(f"crash.{name}", (number,), queue=queue, task_id=f"crash-{number}", producer=producer)
            sent += int(count)
            print(line, end="", flush=True)


if __name__ == "__main__":
    main()
