"""The pool of gevent's greenlets."""

import gevent
from celery.concurrency.gevent import TaskPool

from celery_kit.pools.time_limits import TimeLimits


class Gevent(TimeLimits, TaskPool):
    """Celery's pool `gevent`."""

    timeout_in = gevent.Timeout
