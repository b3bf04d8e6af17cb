"""Faults of beat."""

import signal
from threading import Event
from types import FrameType

from celery.beat import Service

#: Seconds that a round may take after the signal: less than beat's stop grace period in the stacks, which is 10 s.
A_ROUND = 5.0


def beat_stop(sender: Service, **_: object) -> None:
    """Have a signal stop beat between two rounds, as its own loop does. `sender`: its Service.

    Celery's handler of SIGTERM closes the schedule's file and the connection from within the signal, at whatever point beat is,
    and raises SystemExit there. If that is swallowed (by a destructor, for example), or if beat is still connecting, beat goes
    on with closed resources: it exits with a traceback and code 1, or hangs until SIGKILL. Here a round is interrupted only if
    it takes too long, as while the broker is unavailable, or at a second signal.
    """
    shutdown: Event = vars(sender)["_is_shutdown"]  # the stubs lack it

    def at_once(*_: object) -> None:
        raise SystemExit

    def stop(_: int, frame: FrameType | None) -> None:
        sleeping = frame is not None and frame.f_code is Service.start.__code__  # it is not in a round
        if sleeping or shutdown.is_set() or not hasattr(signal, "setitimer"):  # Windows has none
            raise SystemExit
        shutdown.set()
        signal.signal(signal.SIGALRM, at_once)
        signal.setitimer(signal.ITIMER_REAL, A_ROUND)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
