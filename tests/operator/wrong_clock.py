"""A worker that imports this has a clock that began in 1970."""

from celery_kit.observe import vitals

vitals.clock = lambda: 1.0
