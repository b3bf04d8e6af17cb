"""Tasks with an ETA of senders that know no delaying queues. celery_kit/brokers/rabbitmq/delayed.py"""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Queue
from kombu.transport.native_delayed_delivery import MAX_LEVEL, level_name

from tests.engine.rabbitmq.conftest import Urls
from tests.engine.rabbitmq.test_worker import Fast
from tests.harness.waiting import until

#: More than a worker prefetches.
MANY = 300


def waiting(app: Any) -> int:
    """How many messages the delaying queues hold."""
    found, names = 0, [level_name(level) for level in range(MAX_LEVEL + 1)]
    with app.connection_for_read() as connection:
        for name in names:
            channel: Any = connection.channel()
            with suppress(connection.channel_errors):  # there is none yet
                found += channel.queue_declare(name, passive=True).message_count
    return found


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_they_wait_in_the_broker_and_keep_no_worker(urls: Urls, pool: str, tmp_path: Path) -> None:
    fast = Fast(urls, pool, tmp_path)
    try:
        fast.app.amqp.queues[fast.queue](fast.app.connection_for_write().default_channel).declare()
        before = waiting(fast.app)
        other: Any = Celery("another sender", broker=urls.broker, set_as_current=False)
        queue = Queue(fast.queue, exchange="", routing_key=fast.queue, no_declare=True)
        with other.connection_for_write() as connection, connection.Producer() as producer:
            for countdown in [*[3_600] * MANY, 10**9, 4]:
                sent = other.send_task("engine.count", (1,), queue=queue, countdown=countdown, producer=producer)
        due = datetime.now(UTC) + timedelta(seconds=4)
        worker = fast.worker()
        ids = [fast.send("count", number).id for number in range(5)]
        fast.until_stored(ids, 5)
        until("they wait in the broker", lambda: waiting(fast.app) - before >= MANY + 1)
        fast.until_stored([sent.id], 1)
        assert datetime.now(UTC) > due - timedelta(seconds=0.5)
        fast.stop(worker)
        assert fast.left() == 0
        assert waiting(fast.app) - before == MANY + 1
    finally:
        fast.close()
