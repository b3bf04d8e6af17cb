"""Sends a worker SIGQUIT just when it begins a warm shutdown: `celery worker -I tests.engine.quit_as_it_stops`."""

import os
import signal
from typing import Any

from celery.worker import WorkController

Workers: Any = WorkController
close = Workers.signal_consumer_close


def quit_and_close(worker: Any) -> None:
    os.kill(os.getpid(), signal.SIGQUIT)
    close(worker)


Workers.signal_consumer_close = quit_and_close
