"""The same tasks on plain Celery: late acknowledgement, as the kit has it, and Celery's own settings otherwise."""

import os
from typing import Any

from celery import Celery

app = Celery("plain", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.task_acks_late = True
RUNS = os.environ.get("RUNS", os.devnull)


@app.task(name="security.touch")
def touch(*args: Any, **kwargs: Any) -> int:
    with open(RUNS, "a") as file:
        file.write("x\n")
    return len(args) + len(kwargs)


@app.task(name="security.canary")
def canary(number: int) -> int:
    return number
