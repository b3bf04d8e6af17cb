"""A stop that ends within its grace: SIGTERM finishes the running tasks, and hands back what does not end in time.

Celery's warm shutdown waits for its tasks as long as they take. Then the grace ends with SIGKILL, and Redis gives their
messages to another worker after the visibility timeout only. So the worker goes over to the cold shutdown shortly before.

The grace is STOP_GRACE_PERIOD, or follows from the app's time limit; where there is neither, the worker waits as Celery's does.
"""

import os
import signal
import sys
import threading
from typing import Any

from celery import signals

from celery_kit.base import times
from celery_kit.base.signals import celeryd_init

#: Seconds before the end of the grace at which running tasks are handed back: what closing takes on a slow connection. Half of
#: a grace that is shorter than twice that.
BEFORE_THE_END = 10.0


def connect() -> None:
    """Have every worker that is stopped by SIGTERM hand back its tasks before the grace ends."""
    celeryd_init.connect(_begins, weak=False)
    # The kernel keeps SIGTERM from a container's first process as long as it has no handler of its own, and Celery installs one
    # late in its start: a stop before that would last until the grace ends.
    main = threading.current_thread() is threading.main_thread()  # no other may install a handler
    if os.getpid() == 1 and main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def grace_of(conf: Any) -> int | None:
    """How long a stop of a worker with these settings may take, in seconds; None: not known."""
    if os.environ.get(times.STOP_GRACE_PERIOD.name):
        return times.seconds(times.STOP_GRACE_PERIOD, 0, os.environ)
    return times.STOP_GRACE_PERIOD.of(int(conf.task_time_limit)) if conf.task_time_limit else None


def _begins(conf: Any, **_: Any) -> None:
    def limit(sig: str, how: str, **_: Any) -> None:
        # Windows has no signal that tells a process to end within a grace.
        if hasattr(signal, "setitimer") and sig == "SIGTERM" and how == "Warm" and (grace := grace_of(conf)):
            _limit(grace)

    signals.worker_shutting_down.connect(limit, weak=False)


def _limit(grace: float) -> None:
    if signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, None):
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGQUIT))
        signal.setitimer(signal.ITIMER_REAL, max(grace - BEFORE_THE_END, grace / 2))
