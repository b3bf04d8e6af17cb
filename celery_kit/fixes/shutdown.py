"""Faults of a worker's shutdown."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from celery import bootsteps, platforms, signals
from celery.app.utils import Settings
from celery.apps import worker as celerys
from celery.exceptions import WorkerTerminate
from kombu.common import ignore_errors

from celery_kit.base.types import Worker
from celery_kit.pools.table import WorkerOptions, chosen, row

#: Seconds between two checks of whether the tasks have ended, during a soft shutdown.
EVERY = 0.5


def cold_shutdown(conf: Settings, options: WorkerOptions, **_: object) -> None:
    """Have a cold shutdown (SIGQUIT, or Ctrl-C twice) requeue the running tasks, on every pool without child processes.

    Celery's handler kills each task from within the signal. gevent and eventlet report a killed greenlet as a success, so that
    its message is acknowledged and the task is lost. A soft shutdown sleeps in their hub, which raises BlockingSwitchOutError.
    solo raises NotImplementedError into the running task, which then fails. threads raises it too, and waits for its tasks.

    Here no task is killed. The worker closes its connection, so that the broker requeues the unacknowledged messages. Then it
    exits with code 0, together with its tasks. The worker's timer waits for worker_soft_shutdown_timeout.
    """
    pool = row(chosen(conf, options))
    if pool is None or pool.has_children:
        return
    program = vars(celerys)
    program["install_worker_term_hard_handler"] = _handle
    if program["REMAP_SIGTERM"] == "SIGQUIT":
        program["install_worker_term_handler"] = _remapped


def solo_stop(instance: Worker, conf: Settings, options: WorkerOptions, **_: object) -> None:
    """Have a worker on solo start no task once a signal has come.

    Celery 5.7.0 closes its connection step by step and waits for each answer. While it does, it reads the messages that were
    delivered before, and on solo that runs their tasks: after a SIGTERM the worker runs all that RabbitMQ has sent in advance,
    and after a SIGQUIT one more. Here the worker ignores deliveries once a signal has come. They are not acknowledged, so the
    broker requeues them.
    Source: celery/worker/pidbox.py, Pidbox._close_channel; amqp/channel.py, basic_cancel.
    """
    pool = row(chosen(conf, options))
    if pool is None or pool.answers_while_busy:
        return

    def stop(**_: object) -> None:
        consumer = getattr(getattr(instance, "consumer", None), "task_consumer", None)
        if consumer:
            consumer.on_message = lambda _: None

    signals.worker_shutting_down.connect(stop, weak=False)


def _remapped(worker: Worker) -> None:
    _handle(worker, "SIGTERM")


def _handle(worker: Worker, sig: str = "SIGQUIT", **_: object) -> None:
    """Have a signal shut the worker down cold. The second one ends a soft shutdown, the third kills the process."""
    steps: Iterator[Callable[[Worker], None]] = iter((_soften, _requeue))

    def handler(*_: object) -> None:
        begun: Iterator[Callable[[Worker], None]] = vars(worker).setdefault("_cold_steps", steps)
        if begun is not steps and sig == "SIGTERM":
            return  # as in Celery, SIGTERM does not speed up what another signal began
        _say("Cold", sig, worker)
        next(begun, _give_up)(worker)

    platforms.signals[sig] = handler


def _say(how: str, sig: str, worker: Worker) -> None:
    vars(celerys)["safe_say"](f"worker: {how} shutdown (MainProcess)", sys.__stdout__)
    with suppress(Exception):  # a receiver's error must not stop the shutdown
        signals.worker_shutting_down.send(sender=worker.hostname, sig=sig, how=how, exitcode=platforms.EX_OK)


def _soften(worker: Worker) -> None:
    """Wait worker_soft_shutdown_timeout for the running tasks, and consume no new ones; then requeue them."""
    state = worker.state
    timeout = float(worker.app.conf.worker_soft_shutdown_timeout or 0)
    if not timeout or not state.active_requests or not _runs(worker):
        _requeue(worker)
    elif _has_one_thread(worker):
        # The only thread runs the task: the loop notices the end of the task, and an alarm that of the wait.
        state.should_terminate = platforms.EX_OK
        _at_alarm(timeout, lambda: _requeue(worker) if state.active_requests else None)
    else:
        consumer = worker.consumer
        if consumer.task_consumer:
            consumer.call_soon(ignore_errors, consumer, consumer.task_consumer.cancel)
        end = time.monotonic() + timeout

        def look() -> None:
            if not state.active_requests or time.monotonic() > end:
                _requeue(worker)

        worker.timer.call_repeatedly(EVERY, look)


def _requeue(worker: Worker) -> None:
    """Exit without waiting for a task: the broker requeues what is not acknowledged."""
    state = worker.state
    if vars(worker).get("_requeued"):
        return  # done by an earlier signal or by the timer: closing must not be interrupted
    vars(worker)["_requeued"] = True
    if _runs(worker):  # its loop checks should_terminate
        state.should_terminate = platforms.EX_OK
        if _has_one_thread(worker):
            if state.active_requests:
                raise WorkerTerminate(platforms.EX_OK)
            return
        # The loop may have been left a moment ago, for a warm shutdown, whose next step would wait for the pool's tasks.
        vars(worker.pool)["stop"] = worker.pool.terminate
        stopped: Callable[[], None] = getattr(worker.blueprint, "on_stopped")  # noqa: B009  # unknown to the stubs

        def leave() -> None:
            stopped()
            _exit(worker)  # Python would wait for the threads of requeued tasks

        vars(worker.blueprint)["on_stopped"] = leave
    elif worker.pool.is_green:
        worker.pool.spawn_n(_leave, worker)  # the signal's handler may run in the hub, which must not block
    else:
        _leave(worker)


def _leave(worker: Worker) -> None:
    """Exit in the middle of a warm shutdown, which waits for the tasks."""
    with suppress(Exception):
        if worker.hub:
            worker.hub.close()  # sends pending acknowledgements
    with suppress(Exception):
        worker.consumer.shutdown()
    _exit(worker)


def _give_up(_: object) -> None:
    os._exit(platforms.EX_FAILURE)


def _exit(_: object) -> None:
    logging.shutdown()
    for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
        with suppress(Exception):
            stream.flush()
    os._exit(platforms.EX_OK)


def _runs(worker: Worker) -> bool:
    return bool(worker.blueprint.state == vars(bootsteps)["RUN"])


def _has_one_thread(worker: Worker) -> bool:
    """Whether its loop does not run during a task."""
    pool = row(worker.pool_cls)
    return pool is not None and not pool.answers_while_busy


def _at_alarm(seconds: float, do: Callable[[], None]) -> None:
    signal.signal(signal.SIGALRM, lambda *_: do())
    signal.setitimer(signal.ITIMER_REAL, seconds)
