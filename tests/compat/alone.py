"""An app of the kit by its arguments alone, as a user's module has it: `celery -A tests.compat.alone worker`."""

import os

from celery_kit import Kit

app = Kit("alone", broker=os.environ["SHOP_BROKER"], backend=os.environ["SHOP_RESULTS"])
app.conf.task_default_queue = os.environ["QUEUE"]


@app.task(name="alone.add")
def add(x: int, y: int) -> int:
    return x + y
