"""send_many and a broker that becomes unavailable: the error has the confirmed ids, or the spool gets the other messages."""

import json
from pathlib import Path
from typing import Any

from tests.producer.conftest import Broker, Producer, waits

#: Sends 1,000 messages, 200 at a time. After 400 it waits for a line of input. At the end it prints the outcome.
BATCH = """
import json
from app import app
from celery_kit import brokers
from celery_kit.produce.bulk import NotAllSentError
from celery_kit.produce.send import send_many

bulk = brokers.room(app.conf.broker_url).bulk
send, batches = bulk.send, []

def send_and_wait(self, parts):
    if len(batches) == 2:
        input()
    batches.append(send(self, parts))

bulk.send = send_and_wait
print("ready", flush=True)
try:
    print(json.dumps({{"ids": send_many("mail.send_email", [(str(n), "text") for n in range(1_000)], queue="{queue}")}}))
except NotAllSentError as error:
    print(json.dumps({{"confirmed": error.confirmed, "uncertain": error.uncertain, "unsent": error.unsent}}))
"""


def _batch(broker: Broker, producer: Producer, queue: str, **environ: str) -> dict[str, list[str]]:
    with producer.python("-c", BATCH.format(queue=queue), **environ) as process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == "ready\n"
        waits("400 are there", lambda: _count(producer, queue) == 400)
        with broker.stopped():
            process.stdin.write("\n")
            process.stdin.flush()
            return dict(json.loads(process.stdout.readline()))


def _count(producer: Producer, queue: str) -> int:
    app = producer.app()
    with app.connection_for_read() as connection:
        try:
            channel: Any = connection.default_channel
            return int(channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:
            return 0
        finally:
            app.close()


def test_a_batch_that_fails_says_which_messages_were_confirmed(broker: Broker, producer: Producer, queue: str) -> None:
    done = _batch(broker, producer, queue)
    received = producer.received(queue)
    assert len(done["confirmed"]) == 400 and len(done["unsent"]) == 400
    assert set(done["confirmed"]) <= set(received)
    assert not set(done["unsent"]) & set(received)


def test_with_a_spool_the_rest_of_a_batch_goes_there(broker: Broker, producer: Producer, queue: str, spool: Path) -> None:
    done = _batch(broker, producer, queue, SPOOL=str(spool))
    assert len(done["ids"]) == 1_000
    assert producer.run("forward", SPOOL=str(spool))[0] == 0
    waits("the spool is empty", lambda: not list(spool.glob("*.task")))
    assert set(producer.received(queue)) == set(done["ids"])
