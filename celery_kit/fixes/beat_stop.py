"""A beat that is told to stop while it sends: Celery closes its timetable under its hands.

Celery 5.7.0's handler of SIGTERM closes the timetable's file and the connection from within the signal, wherever beat stands,
and raises SystemExit there. Where that is swallowed (in a destructor, say), or where beat still connects, it goes on with what
is closed: it ends with a traceback and exit code 1, or hangs until SIGKILL.
Source: celery/apps/beat.py, Beat.install_sync_handler.

Closed by ending beat between two rounds, as its own loop does; a round that lasts - the broker is away - is broken off, and so
is one at a second signal. Can go when tests/operator/test_beat.py passes without it.
"""

import signal
from typing import Any

from celery.beat import Service

from celery_kit.base.signals import beat_init

#: Seconds that a round may go on after the signal: less than beat's grace in the stacks, which is 10 s.
A_ROUND = 5.0


def connect() -> None:
    """Have every beat stop so."""
    beat_init.connect(_take_over, weak=False)


def _take_over(sender: Any, **_: Any) -> None:
    def at_once(*_: Any) -> None:
        raise SystemExit

    def stop(_: int, frame: Any) -> None:
        sleeping = frame is not None and frame.f_code is Service.start.__code__  # nothing of a round is below it
        if sleeping or sender._is_shutdown.is_set() or not hasattr(signal, "setitimer"):  # Windows has none
            raise SystemExit
        sender._is_shutdown.set()
        signal.signal(signal.SIGALRM, at_once)
        signal.setitimer(signal.ITIMER_REAL, A_ROUND)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
