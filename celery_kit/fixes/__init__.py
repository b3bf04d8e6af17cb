"""The table of upstream faults that the kit fixes: a row each, with the versions that need the fix, and the test that says when
it can go.

A fix is applied if the installed versions are those of its row. With others it is left out, because upstream may have fixed the
fault, or changed what the fix builds on. :data:`PARTS` are the parts of the kit, beside the engine's, that build on private
functions of other packages. With other versions of these, Celery's and kombu's own code is used. A worker and beat log once
what is left out.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from celery_kit.base.versions import installed, unmet

if TYPE_CHECKING:
    from celery import Celery

Kind = TypeVar("Kind")
logger = logging.getLogger(__name__)
SOURCES = "https://github.com/celery"
CELERY, KOMBU = {"celery": ">=5.5.3,<5.8"}, {"kombu": ">=5.5.4,<5.8"}
AMQP, EVENTLET = {"amqp": "==5.4.*"}, {"eventlet": ">=0.41,<0.42"}


@dataclass(frozen=True)
class Fix:
    """A row of the table.

    `what`: the fault, in one line. `reference`: an issue or pull request, or a source file with its version.
    `test`: what fails without the fix, or passes only as long as upstream has the fault.
    `where`: module:name, imported when it is needed.
    `at`: when `where` is called. "install": with an app, without arguments. "worker", "beat": with the arguments of
    celeryd_init or beat_init. "step": it is added as a bootstep of the consumer. "use": by the code that it belongs to, which
    asks :func:`needed` or :func:`patched`.
    `needs`: the versions that have the fault and that the fix is written for. `closed`: those known not to have it.
    """

    name: str
    what: str
    reference: str
    test: str
    where: str
    at: Literal["install", "worker", "beat", "step", "use"]
    needs: Mapping[str, str] = field(default_factory=lambda: CELERY)
    closed: Mapping[str, str] = field(default_factory=dict)

    def is_left_out(self) -> bool:
        """Whether the installed versions are unknown to this row: neither among those that need it nor among `closed`."""
        return bool(unmet(self.needs) and (unmet(self.closed) or not self.closed) and all(map(installed, self.needs)))


@dataclass(frozen=True)
class Part:
    """A part of the kit that builds on private functions. `instead`: what is used if `needs` are not met."""

    name: str
    needs: Mapping[str, str]
    instead: str

    def is_left_out(self) -> bool:
        """Whether the installed versions do not meet `needs`."""
        return bool(unmet(self.needs))


_ROWS = (
    Fix("add_consumer", "`celery control add_consumer` declares another type of queue than producers do: 406",
        "celery/worker/consumer/consumer.py 5.7.0, add_task_queue", "tests/integration/test_control.py::test_add_consumer",
        "celery_kit.fixes.control_commands:add_consumer", "worker"),
    Fix("early_revoked", "`celery control revoke` reports REVOKED of a running task at once, whether it ends or goes on",
        "celery/worker/control.py 5.6.3, _revoke", "tests/integration/test_control.py::test_terminate_of_a_waiting_call",
        "celery_kit.fixes.control_commands:early_revoked", "worker", {"celery": "==5.6.*"}, {"celery": "!=5.6.*"}),
    Fix("revoke", "revoking many tasks holds up the worker: 60,000 ids for 13 s",
        "celery/worker/control.py 5.7.0, _revoke", "tests/security/test_control.py::test_revoking_many_ids_holds_nothing_up",
        "celery_kit.fixes.control_commands:revoke", "worker"),
    Fix("time_limit", "`celery control time_limit` is answered with ok, and changes nothing",
        "celery/worker/request.py 5.7.0, create_request_cls", "tests/integration/test_control.py::test_time_limit_by_control",
        "celery_kit.fixes.control_commands:time_limit", "worker"),
    Fix("auto_concurrency", "`worker_concurrency=auto` is not resolved to a number of processes",
        "celery/worker/worker.py 5.7.0, _resolve_auto_concurrency", "tests/unit/fixes/test_prefork.py",
        "celery_kit.fixes.prefork:auto_concurrency", "worker", {"celery": ">=5.5.3,<5.7"}, {"celery": ">=5.7"}),
    Fix("beat_stop", "a beat that is stopped while it sends exits with a traceback, or hangs",
        "celery/apps/beat.py 5.7.0, Beat.install_sync_handler", "tests/operator/test_beat.py",
        "celery_kit.fixes.beat:beat_stop", "beat"),
    Fix("cancelled_timers", "a prefork worker grows with each task that has a time limit, for as long as the limit lasts",
        f"{SOURCES}/celery/issues/5200", "tests/unit/fixes/test_event_loop.py::test_what_is_cancelled_is_not_kept",
        "celery_kit.fixes.event_loop:cancelled_timers", "worker", CELERY | KOMBU),
    Fix("cold_shutdown", "a cold shutdown loses or fails the running tasks of every pool but prefork",
        "celery/apps/worker.py 5.7.0, on_cold_shutdown", "tests/faults/test_shutdown.py::test_cold_shutdown_hands_back",
        "celery_kit.fixes.shutdown:cold_shutdown", "worker"),
    Fix("solo_stop", "a worker on solo that is stopped still runs the tasks that it has prefetched from RabbitMQ",
        "celery/worker/pidbox.py 5.7.0, Pidbox._close_channel",
        "tests/faults/test_shutdown.py::test_a_stop_begins_nothing_that_was_sent_ahead",
        "celery_kit.fixes.shutdown:solo_stop", "worker"),
    Fix("hub_stall", "the worker's loop sleeps although callbacks are ready",
        f"{SOURCES}/kombu/pull/1587",
        "tests/unit/fixes/test_event_loop.py::test_what_a_callback_hands_to_the_loop_is_done_before_it_sleeps",
        "celery_kit.fixes.event_loop:hub_stall", "worker", KOMBU),
    Fix("quick_drain", "a worker on RabbitMQ does nothing for 0.1 s before its loop starts",
        "celery/worker/loops.py 5.7.0, _quick_drain",
        "tests/unit/fixes/test_event_loop.py::test_what_there_is_is_read_and_nothing_more_is_waited_for",
        "celery_kit.fixes.event_loop:quick_drain", "worker"),
    Fix("events_in_the_loop", "the worker's loop waits without a timeout for its own events to be confirmed",
        "celery/worker/heartbeat.py 5.7.0, Heart._send",
        "tests/engine/test_redis_restart.py::test_celery_still_waits_to_say_that_it_lives",
        "celery_kit.fixes.event_loop:Events", "use"),
    Fix("green_loop", "on green pools the loop waits up to 0.1 s for the event connection after every message",
        "celery/worker/loops.py 5.7.0, synloop",
        "tests/engine/rabbitmq/test_worker.py::test_a_green_pool_waits_for_no_event",
        "celery_kit.worker.green_loop:GreenLoop", "step"),
    Fix("locked_mailbox", "a worker that has lost its connection consumes no task until the broker notices that too",
        "celery/worker/pidbox.py 5.7.0", "tests/engine/rabbitmq/test_worker.py::test_a_dead_connection_that_tells_nobody",
        "celery_kit.fixes.mailbox:locked_mailbox", "worker"),
    Fix("unread_events", "an event that cannot be read, without its sender's name, ends the connection of each worker",
        "celery/worker/consumer/gossip.py 5.7.0, Gossip.on_message",
        "tests/unit/fixes/test_mailbox.py::test_an_event_that_cannot_be_read_is_ignored",
        "celery_kit.fixes.mailbox:unread_events", "worker"),
    Fix("broadcast", "a task for a Broadcast queue is lost without an error: the producer has not declared the exchange",
        "celery/app/amqp.py 5.7.0, send_task_message", "tests/compat/test_broadcast.py",
        "celery_kit.fixes.broadcast:exchanges", "use"),
    Fix("fanouts", "a producer that has not declared a fanout exchange itself does not reach its queues, on Redis",
        "kombu/transport/virtual/base.py 5.7.0, Channel.typeof", "tests/compat/test_broadcast.py",
        "celery_kit.brokers.redis.fixes:Fanouts", "use", KOMBU),
    Fix("delayed_queue", "a delayed task for a queue that no worker has consumed yet fails or is lost, on RabbitMQ",
        "celery/worker/consumer/delayed_delivery.py 5.7.0", "tests/integration/test_queues.py::test_delay_before_its_worker",
        "celery_kit.fixes.delayed_messages:Delayed", "use", CELERY | KOMBU),
    Fix("delayed_start", "a worker on RabbitMQ starts its first task 0.33 s late: it declares delayed delivery first",
        "celery/worker/consumer/delayed_delivery.py 5.7.0, DelayedDelivery.start",
        "tests/unit/fixes/test_delayed_messages.py::test_celery_still_makes_them_first",
        "celery_kit.fixes.delayed_messages:delayed_start", "worker"),
    Fix("short_delays", "a delay of less than a second fails on RabbitMQ",
        "kombu/transport/native_delayed_delivery.py 5.7.0", "tests/integration/test_time.py::test_countdown_under_a_second",
        "celery_kit.fixes.delayed_messages:rounded_up", "use", CELERY | KOMBU),
    Fix("retry_queue", "a retry with a delay leaves its queue for the default one, on RabbitMQ",
        "celery/app/task.py 5.7.0, signature_from_request", "tests/integration/test_retry.py::test_retry_stays_in_its_queue",
        "celery_kit.fixes.delayed_messages:named", "use"),
    Fix("polled_results", "a result by rpc that is polled with `state` or `ready()` never arrives",
        f"{SOURCES}/celery/issues/5414", "tests/engine/test_polled_results.py",
        "celery_kit.results.rpc:final_last", "use"),
    Fix("abandoned_waits", "a `get()` that timed out leaves its result subscribed, and in memory",
        "celery/backends/asynchronous.py 5.7.0, _add_pending_result",
        "tests/compat/test_results.py::test_who_gives_up_leaves_nothing_behind", "celery_kit.results.waits:Waits", "use",
        {"celery": "==5.7.*"}),
    Fix("read_timeouts", "who waits for a result by rpc connects again each second, and loses what arrives meanwhile",
        "celery/backends/asynchronous.py 5.6.3, reconnect_on_error", "tests/unit/results/test_waits.py",
        "celery_kit.results.waits:ReadTimeouts", "use", {"celery": "==5.6.*"}, {"celery": "!=5.6.*"}),
    Fix("failed_ack", "a worker whose acknowledgement fails on Redis consumes nothing any more",
        "kombu/transport/redis.py 5.7.0, QoS.ack", "tests/faults/test_faults.py::test_fault",
        "celery_kit.brokers.redis.fixes:FailedAck", "use", KOMBU),
    Fix("redis_restart", "a restart of a Redis broker kills a worker that has an unacknowledged message",
        "kombu/transport/redis.py 5.7.0, _connparams", "tests/engine/test_redis_restart.py",
        "celery_kit.brokers.redis.fixes:RememberAddress", "use", KOMBU),
    Fix("server_clock", "a worker whose clock is wrong causes running tasks of others to be redelivered, on Redis",
        "kombu/transport/redis.py 5.7.0, QoS.restore_visible", "tests/engine/test_clock.py",
        "celery_kit.brokers.redis.fixes:ServerClock", "use", KOMBU),
    Fix("earlier_channel", "the interval between searches for messages of dead workers cannot be set, on Redis",
        "kombu/transport/redis.py 5.6.2, MultiChannelPoller.maybe_restore_messages", "tests/unit/brokers/redis/test_earlier.py",
        "celery_kit.brokers.redis.fixes:EarlierChannel", "use", {"kombu": ">=5.5.4,<5.7"}, {"kombu": ">=5.7"}),
    Fix("earlier_poller", "kombu's poller cannot unregister a file descriptor, on Redis",
        "kombu/transport/redis.py 5.6.2, MultiChannelPoller", "tests/unit/brokers/redis/test_earlier.py",
        "celery_kit.brokers.redis.fixes:EarlierPoller", "use", {"kombu": ">=5.5.4,<5.7"}, {"kombu": ">=5.7"}),
    Fix("missing_queue_type", "a queue that is not in `task_queues` cannot be a quorum queue",
        "celery/app/amqp.py 5.5.3, Queues.new_missing", "tests/unit/fixes/test_queues.py",
        "celery_kit.fixes.queues:MissingQueueType", "use", {"celery": ">=5.5.3,<5.6"}, {"celery": ">=5.6"}),
    Fix("generic_classes", "`Task[Any, Any]` in an annotation is a TypeError, though the stubs ask for it",
        "celery/app/task.py 5.6.3", "tests/unit/fixes/test_generic_classes.py",
        "celery_kit.fixes.generic_classes:generic_classes", "install", {"celery": ">=5.5.3,<5.7"}, {"celery": ">=5.7"}),
    Fix("bounded", "a megabyte that is compressed becomes a thousand as it arrives, and the worker is killed for its memory",
        "kombu/message.py 5.7.0, Message.__init__", "tests/unit/fixes/test_compression.py::test_what_becomes_too_large",
        "celery_kit.fixes.compression:bounded", "worker", KOMBU),
    Fix("zstd", "compression by zstd ignores the standard library's of Python 3.14, and needs another package",
        "kombu/compression.py 5.6.2", "tests/unit/fixes/test_compression.py",
        "celery_kit.fixes.compression:zstd", "install", {"kombu": ">=5.5.4,<5.7"}, {"kombu": ">=5.7"}),
    Fix("eventlet_dns", "a worker on eventlet does not find its broker at a new address",
        "eventlet/support/greendns.py 0.41.3, ResolverProxy.clear", "tests/unit/fixes/test_eventlet.py",
        "celery_kit.fixes.eventlet:eventlet_dns", "install", EVENTLET),
    Fix("eventlet_import", "a process on eventlet imports a resolver that it may not need, in 0.1 s",
        "eventlet/green/socket.py 0.41.3", "tests/unit/fixes/test_eventlet.py",
        "celery_kit.fixes.eventlet:eventlet_import", "use", EVENTLET),
    Fix("eventlet_timers", "an idle worker on eventlet wakes once for each timer that its last tasks cancelled",
        "eventlet/hubs/hub.py 0.41.3, BaseHub.sleep_until", "tests/unit/fixes/test_eventlet.py",
        "celery_kit.fixes.eventlet:eventlet_timers", "install", EVENTLET),
)  # fmt: skip
FIXES = {row.name: row for row in _ROWS}

PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part("dead letters", CELERY, "messages that cannot be run are dropped"),
        Part("transport of RabbitMQ", KOMBU | AMQP, "kombu's own"),
        Part("transport of Redis", KOMBU, "kombu's own: no priorities as AMQP has them, no dead letters"),
        Part("waiting for results of rpc", CELERY, "Celery's own"),
        Part("waiting for results in Redis", {"celery": "==5.7.*", "redis": "==8.*"}, "Celery's own"),
    )
}


@cache
def needed(name: str) -> bool:
    """Whether the installed versions need this fix, or meet the needs of this part. Raises KeyError for an unknown name."""
    return not unmet((FIXES.get(name) or PARTS[name]).needs)


def patched(celerys: type[Kind], *names: str) -> type[Kind]:
    """A class that derives from those of these fixes that are needed, and from the class `celerys`."""
    found = tuple(_named(FIXES[name].where) for name in names if needed(name))
    return type(celerys.__name__, (*found, celerys), {"__module__": celerys.__module__}) if found else celerys


def connect(app: "Celery", engine: Callable[[], Sequence[str]] = tuple) -> None:
    """Apply the fixes that the installed versions need: to the workers and the beat of `app`, and to this process.

    `engine`: returns the names of the engine's parts that are left out, for the log.
    """
    from celery_kit.base.signals import beat_init, celeryd_after_setup, celeryd_init  # imports Celery

    for fix in filter(lambda fix: needed(fix.name), _ROWS):
        if fix.at == "install":
            _named(fix.where)()
        elif fix.at == "step":
            app.steps["consumer"].add(fix.where)
        elif fix.at in ("worker", "beat"):
            signal = celeryd_init if fix.at == "worker" else beat_init
            signal.connect(partial(_apply, fix), weak=False, dispatch_uid=fix.name)
    for signal in (celeryd_after_setup, beat_init):  # both are sent once logging is set up
        signal.connect(partial(_say, engine), weak=False, dispatch_uid=__name__)


def _apply(fix: Fix, **given: object) -> None:
    _named(fix.where)(**given)


def _named(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def _say(engine: Callable[[], Sequence[str]] = tuple, **_: object) -> None:
    if line := left_out(engine()):
        logger.info(line)


def left_out(engine: Sequence[str] = ()) -> str:
    """What is left out of this process because of the installed versions, in one line; empty if nothing is.

    `engine`: the names of the engine's parts that are left out.
    """
    rows: list[Fix | Part] = [*_ROWS, *PARTS.values()]
    out = [one for one in rows if one.is_left_out()]
    if not out and not engine:
        return ""
    packages = dict.fromkeys(package for one in out for package in one.needs)
    versions = ", ".join(f"{package} {installed(package)}" for package in packages)
    fixes = ", ".join(one.name for one in out if isinstance(one, Fix))
    said = [f"without the fixes {fixes}"] if fixes else []
    said += [f"without {one.name}: {one.instead}" for one in out if isinstance(one, Part)]
    said += [f"without the fast engine's {', '.join(engine)}"] if engine else []
    return f"celery-kit: with {versions}: {'; '.join(said)} (docs/fixes.md)"
