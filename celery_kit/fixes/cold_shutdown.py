"""A cold shutdown (SIGQUIT, or Ctrl-C twice) loses or fails the running tasks of every pool but prefork.

Celery 5.7.0's handler kills each task from within the signal. gevent and eventlet report a killed greenlet as a success, so
that its message is acknowledged and the task is gone; a soft shutdown sleeps in their hub, which raises BlockingSwitchOutError.
solo raises NotImplementedError into the running task, which then has FAILED. threads raises it too, and waits for its tasks.
Source: celery/apps/worker.py, on_cold_shutdown; celery/concurrency/gevent.py and eventlet.py, _make_killable_target;
celery/concurrency/base.py, terminate_job. Upstream's tests of it run on prefork alone: t/smoke/tests/test_worker.py.

Closed by not killing anything: the worker closes its connection, so that the broker has the unacknowledged messages back, and
ends with its tasks, and with exit code 0. worker_soft_shutdown_timeout is waited for by the worker's timer. Can go when
tests/faults/test_shutdown.py::test_cold_shutdown_hands_back passes without it.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

from celery import platforms, signals
from celery.exceptions import WorkerTerminate
from kombu.common import ignore_errors

from celery_kit.base.signals import celeryd_init
from celery_kit.pools.table import chosen, row

EVERY = 0.5  # seconds, between looks at whether a soft shutdown's tasks are done


def connect() -> None:
    """Have every worker whose pool is no process pool shut down so."""
    celeryd_init.connect(_install, weak=False)


def _install(instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    pool = row(chosen(conf, options))
    if pool is None or pool.has_children:
        return
    program: Any = import_module("celery.apps.worker")
    program.install_worker_term_hard_handler = _handle
    if program.REMAP_SIGTERM == "SIGQUIT":
        program.install_worker_term_handler = _remapped


def _remapped(worker: Any) -> None:
    _handle(worker, "SIGTERM")


def _handle(worker: Any, sig: str = "SIGQUIT", **_: Any) -> None:
    """Make a signal end the worker cold; the second one ends a soft shutdown's wait, the third the process."""
    steps = iter((_soften, _hand_back))

    def handler(*_: Any) -> None:
        if worker.__dict__.setdefault("_cold_steps", steps) is not steps and sig == "SIGTERM":
            return  # as Celery: SIGTERM does not hasten what another signal began
        _say("Cold", sig, worker)
        next(worker._cold_steps, _give_up)(worker)

    platforms.signals[sig] = handler


def _say(how: str, sig: str, worker: Any) -> None:
    program: Any = import_module("celery.apps.worker")
    program.safe_say(f"worker: {how} shutdown (MainProcess)", sys.__stdout__)
    with suppress(Exception):  # a receiver's error must not keep the worker
        signals.worker_shutting_down.send(sender=worker.hostname, sig=sig, how=how, exitcode=platforms.EX_OK)


def _soften(worker: Any) -> None:
    """Wait worker_soft_shutdown_timeout for the running tasks, taking no new ones; then hand back."""
    state: Any = import_module("celery.worker.state")
    timeout = float(worker.app.conf.worker_soft_shutdown_timeout or 0)
    if not timeout or not state.active_requests or not _runs(worker):
        _hand_back(worker)
    elif _has_one_thread(worker):
        # The one thread is inside of the task: its end is seen by the loop, the end of the wait by an alarm.
        state.should_terminate = platforms.EX_OK
        _at_alarm(timeout, lambda: _hand_back(worker) if state.active_requests else None)
    else:
        consumer = worker.consumer
        consumer.call_soon(ignore_errors, consumer, consumer.task_consumer.cancel)
        end = time.monotonic() + timeout

        def look() -> None:
            if not state.active_requests or time.monotonic() > end:
                _hand_back(worker)

        worker.timer.call_repeatedly(EVERY, look)


def _hand_back(worker: Any) -> None:
    """End without waiting for a task: what is not acknowledged goes back to the broker."""
    state: Any = import_module("celery.worker.state")
    if worker.__dict__.get("_handed_back"):
        return  # on a signal or by the timer before this one: closing must not be cut short
    worker._handed_back = True
    if _runs(worker):  # its loop looks at this
        state.should_terminate = platforms.EX_OK
        if _has_one_thread(worker):
            if state.active_requests:
                raise WorkerTerminate(platforms.EX_OK)
            return
        stopped = worker.blueprint.on_stopped

        def leave() -> None:
            stopped()
            _exit(worker)  # Python would wait for the threads of tasks that were handed back

        worker.blueprint.on_stopped = leave
    elif worker.pool.is_green:
        worker.pool.spawn_n(_leave, worker)  # a signal's handler may run in the hub, which must not wait
    else:
        _leave(worker)


def _leave(worker: Any) -> None:
    """End in the middle of a warm shutdown, which waits for the tasks."""
    with suppress(Exception):
        if worker.hub:
            worker.hub.close()  # acknowledgements of what is done
    with suppress(Exception):
        worker.consumer.shutdown()
    _exit(worker)


def _give_up(_: Any) -> None:
    os._exit(platforms.EX_FAILURE)


def _exit(_: Any) -> None:
    logging.shutdown()
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(Exception):
            stream.flush()  # type: ignore[union-attr]
    os._exit(platforms.EX_OK)


def _runs(worker: Any) -> bool:
    return bool(worker.blueprint.state == import_module("celery.bootsteps").RUN)


def _has_one_thread(worker: Any) -> bool:
    """Its loop rests while a task runs."""
    pool = row(worker.pool_cls)
    return pool is not None and not pool.answers_while_busy


def _at_alarm(seconds: float, do: Callable[[], None]) -> None:
    signal.signal(signal.SIGALRM, lambda *_: do())
    signal.setitimer(signal.ITIMER_REAL, seconds)
