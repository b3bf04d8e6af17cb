"""An app of the kit in a user's module, configured only by its arguments: `celery -A tests.compat.alone worker`."""

import os

from celery_kit import Kit

app = Kit("alone", broker=os.environ["SHOP_BROKER"], backend=os.environ["SHOP_RESULTS"])
app.conf.task_default_queue = os.environ["QUEUE"]


@app.task(name="alone.add")
def add(x: int, y: int) -> int:
    return x + y
