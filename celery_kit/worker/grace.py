"""A stop within its grace period: after SIGTERM running tasks finish, and those that take too long are requeued.

Celery's warm shutdown waits for its tasks without a limit. Then the grace period would end with SIGKILL, and on Redis their
messages would reach another worker only when this one's lease has ended. So the worker starts a cold shutdown shortly before.

The grace period is STOP_GRACE_PERIOD, or follows from the app's time limit. Without either, the worker waits like Celery's.
"""

import os
import signal
import sys
import threading

from celery import signals
from celery.app.utils import Settings

from celery_kit.base import times
from celery_kit.base.signals import celeryd_init

#: Running tasks are requeued so many seconds before the grace period ends: what closing takes on a slow connection. If the
#: grace period is shorter than twice this, they are requeued after half of it.
BEFORE_THE_END = 10.0


def connect() -> None:
    """Have every worker that SIGTERM stops requeue its running tasks before the grace period ends."""
    celeryd_init.connect(_begins, weak=False)
    # The kernel does not deliver SIGTERM to a container's first process while that has no handler, and Celery installs one late
    # in its start. A stop before that would last for the whole grace period.
    main = threading.current_thread() is threading.main_thread()  # only this thread may install a handler
    if os.getpid() == 1 and main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def grace_of(conf: Settings) -> int | None:
    """How long a stop of a worker with these settings may take, in seconds; None: not known."""
    if os.environ.get(times.STOP_GRACE_PERIOD.name):
        return times.seconds(times.STOP_GRACE_PERIOD, 0, os.environ)
    # TASK_TIME_LIMIT=0: a stack whose tasks have no limit, and whose compose file takes the limit as 0.
    known = conf.task_time_limit or os.environ.get("TASK_TIME_LIMIT") == "0"
    return times.STOP_GRACE_PERIOD.of(int(conf.task_time_limit or 0)) if known else None


def _begins(conf: Settings, **_: object) -> None:
    def limit(sig: str, how: str, **_: object) -> None:
        # On Windows, stopping a process involves no grace period.
        if hasattr(signal, "setitimer") and sig == "SIGTERM" and how == "Warm" and (grace := grace_of(conf)):
            _limit(grace)

    signals.worker_shutting_down.connect(limit, weak=False)


def _limit(grace: float) -> None:
    if signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, None):
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGQUIT))
        signal.setitimer(signal.ITIMER_REAL, max(grace - BEFORE_THE_END, grace / 2))
