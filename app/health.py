"""A file that the worker's own loop touches while it consumes; health checks look at its age.

HEARTBEAT_FILE names it; without that variable nothing is written. A probe needs no Python: `deploy/healthy.sh`.
"""

import os
from pathlib import Path
from typing import Any

from celery import Celery, bootsteps

EVERY = 2.0  # seconds


class Heartbeat(bootsteps.StartStopStep):
    """Touch the file as long as the consumer is connected; take it away when it is not.

    Source: Celery's user guide, "Extensions and Bootsteps".
    """

    # Where the broker delays tasks, one that comes before its queue is bound to the delayed delivery is lost.
    requires = ("celery.worker.consumer.tasks:Tasks", "celery.worker.consumer.delayed_delivery:DelayedDelivery")

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.file = Path(os.environ.get("HEARTBEAT_FILE", ""))
        self.enabled = self.file != Path()
        self.timer: Any = None

    def start(self, parent: Any) -> None:
        self.file.touch()
        self.timer = parent.timer.call_repeatedly(EVERY, self.file.touch)

    def stop(self, parent: Any) -> None:
        if self.timer:
            self.timer.cancel()
            self.timer = None
        self.file.unlink(missing_ok=True)

    shutdown = stop


def install(app: Celery) -> None:
    """Give every worker of `app` the heartbeat."""
    app.steps["consumer"].add(Heartbeat)
