"""A producer on the smaller side of a cut: it sends until it is killed, and notes the ids that were accepted."""

import os
from contextlib import suppress
from pathlib import Path

from kombu.utils.uuid import uuid

from celery_kit import Kit

replicas, queue, file = os.environ["REPLICAS"], os.environ["QUEUE"], Path("/data/island")
app = Kit("sender", broker=os.environ["CELERY_BROKER_URL"])
app.conf.update(broker_transport_options={"replicas": int(replicas)}, publish_timeout=1)
while True:
    task = uuid()
    with suppress(Exception):  # refused, or not confirmed
        app.send_task("faults.effect", (0.02,), task_id=task, queue=queue)
        with file.open("a") as notes:
            notes.write(f"{replicas} {task}\n")
