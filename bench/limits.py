"""What a client library alone can do, one process: `python -m bench.limits BROKER NUMBER` on CELERY_BROKER_URL; prints tasks/s.

The same reliable work as a worker's, without a framework: take messages so that none is lost, store a result for each, and
acknowledge after that; in batches of 64 on Redis, and on RabbitMQ an acknowledgement for 32 messages.
"""

import json
import os
import sys
import time
from collections.abc import Callable

import amqp
from redis import Redis

BATCH, ACKNOWLEDGED = 64, 32
BODY = json.dumps([["x" * 100], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])

#: Acknowledges the last batch, takes the next and records it as unacknowledged.
TAKE = """
if #ARGV > 1 then redis.call('HDEL', KEYS[2], unpack(ARGV, 2)) end
local taken = redis.call('RPOP', KEYS[1], ARGV[1]) or {}
for number, message in ipairs(taken) do redis.call('HSET', KEYS[2], number, message) end
return taken
"""


def redis(number: int) -> float:
    client = Redis.from_url(os.environ["CELERY_BROKER_URL"])
    results = Redis.from_url(os.environ["CELERY_RESULT_BACKEND"])
    for start in range(0, number, 1_000):
        client.lpush("limit", *[BODY] * min(1_000, number - start))
    take, done = client.register_script(TAKE), 0
    acks: list[int] = []
    began = time.perf_counter()
    while batch := take(keys=["limit", "limit.unacked"], args=[BATCH, *acks]):
        writes = results.pipeline(transaction=False)
        for message in batch:
            value = len(json.loads(message)[0][0])
            done += 1
            writes.setex(f"limit-{done}", 86_400, json.dumps({"status": "SUCCESS", "result": value}))
        writes.execute()
        acks = list(range(1, len(batch) + 1))
    return number / (time.perf_counter() - began)


def rabbitmq(number: int) -> float:
    url = os.environ["CELERY_BROKER_URL"].removeprefix("amqp://")
    account, _, place = url.rpartition("@")
    host, _, vhost = place.partition("/")
    user, _, password = account.partition(":")
    results = Redis.from_url(os.environ["CELERY_RESULT_BACKEND"])
    with amqp.Connection(host, user, password, virtual_host=vhost) as connection:
        channel = connection.channel()
        channel.queue_declare("limit", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        for _ in range(number):
            channel.basic_publish(amqp.Message(BODY, delivery_mode=2), routing_key="limit")
        while int(channel.queue_declare("limit", passive=True)[1]) < number:  # type: ignore[index]
            time.sleep(0.1)
        done, writes = 0, results.pipeline(transaction=False)

        def on_message(message: amqp.Message) -> None:
            nonlocal done
            done += 1
            value = len(json.loads(message.body)[0][0])
            writes.setex(f"limit-{done}", 86_400, json.dumps({"status": "SUCCESS", "result": value}))
            if done % ACKNOWLEDGED == 0 or done == number:
                writes.execute()
                channel.basic_ack(message.delivery_tag or 0, multiple=True)

        channel.basic_qos(0, 2 * BATCH, False)
        channel.basic_consume("limit", callback=on_message)
        began = time.perf_counter()
        while done < number:
            connection.drain_events()
        return number / (time.perf_counter() - began)


LIMITS: dict[str, Callable[[int], float]] = {"redis": redis, "rabbitmq": rabbitmq}

if __name__ == "__main__":
    print(LIMITS[sys.argv[1]](int(sys.argv[2])))
