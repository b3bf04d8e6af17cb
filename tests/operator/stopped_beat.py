"""`celery -A tests.operator.stopped_beat beat`: a beat that is stopped while it sends, where Python swallows exceptions."""

import os
import signal
from typing import Any

from celery import signals

from app import app

__all__ = ["app"]


class Dying:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(10))  # the handler runs here, where Python discards its exceptions


@signals.before_task_publish.connect(weak=False)
def stop(**_: Any) -> None:
    Dying()
