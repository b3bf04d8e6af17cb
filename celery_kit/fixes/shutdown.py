"""Faults of a worker's shutdown."""

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

from celery_kit.pools.table import chosen, row

#: Seconds between two looks at whether a soft shutdown's tasks have ended.
EVERY = 0.5


def cold_shutdown(conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Have a cold shutdown (SIGQUIT, or Ctrl-C twice) requeue the running tasks, on every pool without child processes.

    Celery's handler kills each task from within the signal. gevent and eventlet report a killed greenlet as a success, so that
    its message is acknowledged and the task is lost; a soft shutdown sleeps in their hub, which raises BlockingSwitchOutError.
    solo raises NotImplementedError into the running task, which then fails. threads raises it too, and waits for its tasks.

    Here nothing is killed: the worker closes its connection, so that the broker requeues the unacknowledged messages, and exits
    together with its tasks, with exit code 0. worker_soft_shutdown_timeout is waited for by the worker's timer.
    """
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
    """Make a signal shut the worker down cold; the second one cuts a soft shutdown short, the third kills the process."""
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
    """Wait worker_soft_shutdown_timeout for the running tasks, consuming no new ones; then requeue them."""
    state: Any = import_module("celery.worker.state")
    timeout = float(worker.app.conf.worker_soft_shutdown_timeout or 0)
    if not timeout or not state.active_requests or not _runs(worker):
        _hand_back(worker)
    elif _has_one_thread(worker):
        # The only thread runs the task: the loop sees its end, and an alarm the end of the wait.
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
    """Exit without waiting for a task: the broker requeues what is not acknowledged."""
    state: Any = import_module("celery.worker.state")
    if worker.__dict__.get("_handed_back"):
        return  # by an earlier signal, or by the timer: closing must not be interrupted
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
            _exit(worker)  # Python would wait for the threads of requeued tasks

        worker.blueprint.on_stopped = leave
    elif worker.pool.is_green:
        worker.pool.spawn_n(_leave, worker)  # a signal's handler may run in the hub, which must not wait
    else:
        _leave(worker)


def _leave(worker: Any) -> None:
    """Exit in the middle of a warm shutdown, which waits for the tasks."""
    with suppress(Exception):
        if worker.hub:
            worker.hub.close()  # sends pending acknowledgements
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
    """Whether its loop rests while a task runs."""
    pool = row(worker.pool_cls)
    return pool is not None and not pool.answers_while_busy


def _at_alarm(seconds: float, do: Callable[[], None]) -> None:
    signal.signal(signal.SIGALRM, lambda *_: do())
    signal.setitimer(signal.ITIMER_REAL, seconds)
