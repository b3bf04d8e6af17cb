"""Plain Celery, `celery -A bench.plain worker`: its defaults, and acks_late. It imports nothing from the kit.

`python -m bench.plain NUMBER WORK BYTES` sends tasks, from copies of one message that Celery made.
"""

import os
import sys
from typing import Any
from uuid import uuid4

from celery import Celery

app = Celery("plain", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.update(task_acks_late=True, task_default_queue="bench", include=["bench.celerys"])


def send(number: int, work: str, size: int) -> None:
    """Send `number` tasks. Their messages differ only by the id."""
    task = app.tasks[f"bench.{work}"]
    message: Any = app.amqp.as_task_v2(str(uuid4()), task.name, args=("x" * size,), create_sent_event=False)
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection, auto_declare=False)
        app.amqp.queues["bench"](connection.default_channel).declare()
        for _ in range(number):
            name = str(uuid4())
            headers = {**message.headers, "id": name, "root_id": name}
            properties = {**message.properties, "correlation_id": name}
            producer.publish(message.body, "bench", headers=headers, serializer="json", declare=(), **properties)


if __name__ == "__main__":
    app.loader.import_default_modules()
    send(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
