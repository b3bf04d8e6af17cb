"""The throughput of a client library without a framework, in one process: `python -m bench.limits LOOP BROKER NUMBER`.

It prints tasks/s. The work is as reliable as a worker's: fetch messages so that none is lost, store a result for each, and
acknowledge afterwards, in batches of 64 on Redis, and with one acknowledgement for 32 messages on RabbitMQ.

The messages of the loop `lean` have only arguments. It identifies them by a number, and stores as little as possible. The loop
`celerys` has Celery's messages and guarantees: the time of each delivery is recorded, results have the fields of Celery's, and
clients that wait for a result are notified.
"""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import amqp
from redis import Redis

from celery_kit.base.lua import script

BATCH, ACKNOWLEDGED = 64, 32
BODY = json.dumps([["x" * 100], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
QUEUE = "bench"


def lean(writes: Any, number: int, value: int, _: str = "") -> None:
    writes.setex(f"limit-{number}", 86_400, json.dumps({"status": "SUCCESS", "result": value}))


def celerys(writes: Any, _: int, value: int, task_id: str = "") -> None:
    meta = {"status": "SUCCESS", "result": value, "traceback": None, "children": [], "date_done": datetime.now(UTC).isoformat()}
    text = json.dumps({**meta, "task_id": task_id})
    writes.setex(f"celery-task-meta-{task_id}", 86_400, text)
    writes.publish(f"celery-task-meta-{task_id}", text)


STORE: dict[str, Callable[..., None]] = {"lean": lean, "celerys": celerys}


def send_celerys(number: int) -> None:
    subprocess.run([sys.executable, "-m", "bench.kit", str(number), "noop", "100"], check=True)


def redis(loop: str, number: int) -> float:
    client = Redis.from_url(os.environ["CELERY_BROKER_URL"])
    results = Redis.from_url(os.environ["CELERY_RESULT_BACKEND"])
    if loop == "celerys":
        send_celerys(number)
    else:
        for start in range(0, number, 1_000):
            client.lpush(QUEUE, *[BODY] * min(1_000, number - start))
    take, store, done, batches = client.register_script(script("bench.limits", loop)), STORE[loop], 0, 0
    acks: list[str] = []
    began = time.perf_counter()
    while batch := take(keys=[QUEUE, "limit.unacked", "limit.unacked_index"], args=[BATCH, batches, *acks]):
        writes = results.pipeline(transaction=False)
        for message in batch:
            text, task_id = json.loads(message), ""
            if loop == "celerys":
                task_id = text["headers"]["id"]
                text = json.loads(base64.b64decode(text["body"]))
            done += 1
            store(writes, done, len(text[0][0]), task_id)
        writes.execute()
        acks = [f"{batches}-{place}" for place in range(1, len(batch) + 1)]
        batches += 1
    return number / (time.perf_counter() - began)


def rabbitmq(loop: str, number: int) -> float:
    url = os.environ["CELERY_BROKER_URL"].removeprefix("amqp://")
    account, _, place = url.rpartition("@")
    host, _, vhost = place.partition("/")
    user, _, password = account.partition(":")
    results = Redis.from_url(os.environ["CELERY_RESULT_BACKEND"])
    with amqp.Connection(host, user, password, virtual_host=vhost) as connection:
        channel = connection.channel()
        if loop == "celerys":
            send_celerys(number)
        else:
            channel.queue_declare(QUEUE, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
            for _ in range(number):
                channel.basic_publish(amqp.Message(BODY, delivery_mode=2), routing_key=QUEUE)
        while int(channel.queue_declare(QUEUE, passive=True)[1]) < number:  # type: ignore[index]
            time.sleep(0.1)
        store, done, writes = STORE[loop], 0, results.pipeline(transaction=False)

        def on_message(message: amqp.Message) -> None:
            nonlocal done
            done += 1
            task_id = (message.headers or {})["id"] if loop == "celerys" else ""
            store(writes, done, len(json.loads(message.body)[0][0]), task_id)
            if done % ACKNOWLEDGED == 0 or done == number:
                writes.execute()
                channel.basic_ack(message.delivery_tag or 0, multiple=True)

        channel.basic_qos(0, 2 * BATCH, False)
        channel.basic_consume(QUEUE, callback=on_message)
        began = time.perf_counter()
        while done < number:
            connection.drain_events()
        return number / (time.perf_counter() - began)


LIMITS: dict[str, Callable[[str, int], float]] = {"redis": redis, "rabbitmq": rabbitmq}

if __name__ == "__main__":
    print(LIMITS[sys.argv[2]](sys.argv[1], int(sys.argv[3])))
