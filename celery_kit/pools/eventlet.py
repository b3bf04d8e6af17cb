"""The pool of eventlet's green threads."""

import eventlet
from celery.concurrency.eventlet import TaskPool

from celery_kit.pools.time_limits import TimeLimits


class Eventlet(TimeLimits, TaskPool):
    """Celery's pool `eventlet`."""

    timeout_in = eventlet.Timeout
