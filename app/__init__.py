"""celery-kit: one Celery task codebase for every broker and pool.

`celery -A app …` finds :data:`app` here. Settings: `app/config.py`. Tasks: every module in `app/tasks/`.
"""

from app import patched  # noqa: F401  # first of all

# isort: split

from functools import cached_property
from typing import Any

from celery import Celery

from app import (
    backends,
    brokers,
    correlation,
    delay,
    health,
    loop,
    pace,
    pools,
    prefork_pipes,
    security,
    set_aside,
    shutdown,
    spool,
    tracing,
    vitals,
)
from app.fixes import (
    add_consumer,
    beat_stop,
    cancelled_timers,
    cold_shutdown,
    dead_connection,
    delayed_queue,
    delayed_start,
    eventlet_dns,
    eventlet_timers,
    forked,
    hub_stall,
    locked_mailbox,
    prefork_flush,
    quick_drain,
    retry_queue,
    short_delays,
    solo_stop,
    time_limit,
)


class Kit(Celery):
    """Celery with short task names: `app/tasks/mail.py:send_email` is `mail.send_email`.

    Source: Celery's user guide, "Changing the automatic naming behavior".
    """

    amqp_cls = "app.publishing:AMQP"
    task_cls = "app.delay:Task"
    events_cls = "app.fixes.events_in_the_loop:Events"
    log_cls = "app.logs:Logging"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        forked.connect(self)

    def gen_task_name(self, name: str, module: str) -> Any:
        return super().gen_task_name(name, module.removeprefix("app.tasks."))

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: Any = None,
        eta: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        alike = not more and countdown is None and eta is None and options.keys() <= delay.KEPT
        if alike and (result := self.delays.send(delay.Named(self, name), args or (), kwargs or {}, options)):
            return result
        if more or not self.spooled or hasattr(options.get("producer"), "records"):  # app/bulk.py: nothing is sent yet
            return self._send(name, args, kwargs, countdown, eta, *more, **options)
        return self.spooled.send_task(name, args, kwargs, countdown, eta, options)

    def _send(
        self, name: str, args: Any, kwargs: Any, countdown: Any = None, eta: Any = None, *more: Any, **options: Any
    ) -> Any:
        delayed = countdown or eta
        if (delayed or options.get("routing_key")) and self.conf.task_default_queue_type == "quorum":
            # The broker itself delays tasks. What a task without delay spends here, each `delay()` does.
            options = retry_queue.named(options)
            if delayed:
                countdown, eta = short_delays.rounded_up(countdown, eta, self.now())
                self.delayed.prepare(name, args, kwargs, options)
        return super().send_task(name, args, kwargs, countdown, eta, *more, **options)

    @cached_property
    def delayed(self) -> delayed_queue.Delayed:
        """The queues that delayed tasks of this process can reach."""
        return delayed_queue.Delayed(self)

    @cached_property
    def delays(self) -> delay.Delays:
        """What a task's `delay()` does as the one before it did."""
        return delay.Delays(self, Kit.send_task)

    @cached_property
    def spooled(self) -> spool.Spooled | None:
        """Where tasks go while the broker is away; None without SPOOL."""
        return spool.Spooled(self, self._send) if self.conf.get("spool") else None

    def _get_backend(self) -> Any:
        backend = super()._get_backend()  # type: ignore[misc]
        room = backends.room(self.conf.result_backend)
        # Of one without a room it is not known.
        backend.thread_safe = backend.thread_safe and bool(room and room.thread_safe)
        if room and room.adapt:
            room.adapt(backend)
            forked.watch(backend)
        return backend


app = Kit("celery-kit")
app.config_from_object("app.config")
brokers.connect()
pools.connect()
pace.connect()
prefork_pipes.connect()
add_consumer.connect()
time_limit.connect()
correlation.connect()
vitals.connect()
beat_stop.connect()
cancelled_timers.connect()
cold_shutdown.connect()
prefork_flush.connect()
solo_stop.connect()
shutdown.connect()
tracing.connect()
health.install(app)
loop.install(app)
set_aside.install(app)
hub_stall.connect()
dead_connection.connect()
delayed_start.connect()
locked_mailbox.connect()
quick_drain.connect()
eventlet_dns.connect()
eventlet_timers.connect()
app.steps["consumer"].update(  # by name: producers need no worker
    f"app.{module}:Step" for module in ("commit_worker", "lane", "expiry", "lifeline", "terminate", "time_limits")
)
security.connect(app)
