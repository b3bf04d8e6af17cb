"""Faults of beat."""

import signal
from typing import Any

from celery.beat import Service

#: Seconds that a round may go on after the signal: less than beat's stop grace period in the stacks, which is 10 s.
A_ROUND = 5.0


def beat_stop(sender: Any, **_: Any) -> None:
    """Have a signal stop beat between two rounds, as its own loop does. `sender`: its Service.

    Celery's handler of SIGTERM closes the schedule's file and the connection from within the signal, wherever beat is, and
    raises SystemExit there. Where that is swallowed (in a destructor, say), or beat is still connecting, beat goes on with what
    is closed: it exits with a traceback and code 1, or hangs until SIGKILL. Here a round that does not end in time, as while
    the broker is unavailable, is interrupted, and so is one at a second signal.
    """

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
