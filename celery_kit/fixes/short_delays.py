"""A delay of less than a second fails where the broker itself delays tasks.

Celery 5.7.0 hands `int(countdown)` to kombu's native delayed delivery, and kombu 5.7.0 refuses 0: `ValueError: countdown must
be a positive number`. A producer's apply_async raises; in a worker, Task.retry turns a retry into a failure. Retries with
jitter meet it by chance. Source: celery/app/base.py, send_task; kombu/transport/native_delayed_delivery.py.

Closed by rounding such a delay up to one second. Can go when
tests/integration/test_time.py::test_countdown_under_a_second passes without it.
"""

from datetime import datetime
from typing import Any

from celery.utils.time import maybe_make_aware


def rounded_up(countdown: float | None, eta: datetime | str | None, now: datetime) -> tuple[float | None, Any]:
    """Give countdown (seconds) and ETA back; both as a countdown of one second where less than that is left."""
    if isinstance(eta, str):
        eta = datetime.fromisoformat(eta)
    left = (maybe_make_aware(eta) - now).total_seconds() if eta else countdown or 0
    return (1, None) if 0 < left < 1 else (countdown, eta)
