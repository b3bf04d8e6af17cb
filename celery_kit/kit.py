"""What an app of the kit is: Celery's, with the kit's parts in it, and nothing changed in any other app of the process.

What still is changed for the whole process: docs/apps.md.

`install` gives an app that exists the same class as `Kit()` has. Celery looks up `amqp`, `send_task`, `Task` and the backend on
the app's class, and has no hook for them: functions set on the instance would be lost when the app is pickled, and could not
call what they replace. So `app.__class__` becomes a class of both, the user's first. Parts that Celery has made and cached by
then are made again, and tasks that it has bound by then read their settings again.
"""

import logging
import threading
from functools import cache, cached_property
from typing import Any, ClassVar
from weakref import WeakSet

from celery import Celery
from celery import _state as state
from celery.utils.imports import instantiate, symbol_by_name

from celery_kit import defaults, fixes, forked, results
from celery_kit.base import security, signals
from celery_kit.base.refusals import unless_refused
from celery_kit.engine import parts, pipes, prefetch
from celery_kit.fixes import delayed_messages
from celery_kit.observe import health, runs, tracing, vitals
from celery_kit.pools import table
from celery_kit.produce import delay, spool
from celery_kit.worker import dead_lettering, grace

#: By name, for producers need no worker.
STEPS = [f"celery_kit.{module}:Step" for module in ("brokers.rabbitmq.expired", "engine.commit_worker", "engine.fast_path")]
#: Each prepares the workers of the kit's apps when they begin.
AT_THE_BEGIN = (table, prefetch, pipes, vitals, grace)


logger = logging.getLogger(__name__)
_state: Any = state  # Celery's stubs know little of it
_installed: "WeakSet[Any]" = WeakSet()


class Kit(Celery):
    """Celery's, and takes all that it takes. A class that the user or a fixup names - amqp, events, log, task_cls, by argument
    or attribute - is combined with the kit's own.
    """

    #: The app that the kit itself made the one of threads which have none of their own.
    _of_threads: "ClassVar[Kit | None]" = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        install(self)

    def set_default(self) -> None:
        Kit._of_threads = None  # who asks for one keeps it
        super().set_default()

    @cached_property
    def amqp(self) -> Any:
        return instantiate(combined(self.amqp_cls, "celery_kit.produce.publishing:AMQP"), app=self)

    @cached_property
    def events(self) -> Any:
        kits: Any = "celery_kit.fixes.event_loop:Events" if fixes.needed("events_in_the_loop") else self.events_cls
        return instantiate(combined(self.events_cls, kits), app=self)

    @cached_property
    def log(self) -> Any:
        return instantiate(combined(self.log_cls, "celery_kit.observe.logs:Logging"), app=self)

    def create_task_cls(self) -> Any:
        both = combined(self.task_cls, "celery_kit.produce.delay:Task")
        return self.subclass_with_self(both, name="Task", attribute="_app", keep_reduce=True, abstract=True)

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
        if (
            more or not self.spooled or hasattr(options.get("producer"), "records")
        ):  # celery_kit/produce/bulk.py: nothing is sent yet
            return self._send(name, args, kwargs, countdown, eta, *more, **options)
        return self.spooled.send_task(name, args, kwargs, countdown, eta, options)

    def _send(
        self, name: str, args: Any, kwargs: Any, countdown: Any = None, eta: Any = None, *more: Any, **options: Any
    ) -> Any:
        delayed = countdown or eta
        if (delayed or options.get("routing_key")) and self.conf.task_default_queue_type == "quorum":
            # The broker itself delays tasks. What a task without delay spends here, each `delay()` does.
            if fixes.needed("retry_queue"):
                options = delayed_messages.named(options)
            if delayed and fixes.needed("delayed_queue"):
                self.delayed.prepare(name, args, kwargs, options)
            if delayed and fixes.needed("short_delays"):
                countdown, eta = delayed_messages.rounded_up(countdown, eta, self.now())
        return super().send_task(name, args, kwargs, countdown, eta, *more, **options)

    @cached_property
    def delayed(self) -> delayed_messages.Delayed:
        """The queues that delayed tasks of this process can reach."""
        return delayed_messages.Delayed(self)

    @cached_property
    def delays(self) -> delay.Delays:
        """What a task's `delay()` does as the one before it did."""
        return delay.Delays(self, Kit.send_task)

    @cached_property
    def spooled(self) -> spool.Spooled | None:
        """Where tasks go while the broker is away; None without SPOOL."""
        return spool.Spooled(self, self._send) if self.conf.get("spool") else None

    def _get_backend(self) -> Any:
        # Celery's own table of an app; what the user has put there wins.
        self.loader.override_backends = {**results.classes(self.conf.engine), **self.loader.override_backends}
        backend = super()._get_backend()  # type: ignore[misc]
        room = results.room(self.conf.result_backend)
        # Of one without a room it is not known.
        backend.thread_safe = backend.thread_safe and bool(room and room.thread_safe)
        if room and room.adapt:
            room.adapt(backend)
            forked.watch(backend)
        return backend


def combined(named: Any, kits: str) -> Any:
    """The kit's class where `named` is Celery's own; else a class of both, in which the user's comes first."""
    theirs, ours = symbol_by_name(named), symbol_by_name(kits)
    if not isinstance(theirs, type) or issubclass(theirs, ours):
        return theirs
    return ours if issubclass(ours, theirs) else type(theirs.__name__, (theirs, ours), {"__module__": theirs.__module__})


def _is_nobodys(app: Any) -> bool:
    """There is none, or it is the one that Celery makes for itself where nobody has."""
    return app is None or (type(app) is Celery and app.main == "default" and not vars(app)["set_as_current"])


def install(app: Any) -> None:
    """Make `app`, a Celery app that exists, one of the kit's, as `Kit()` makes it; a second call does nothing.

    It may be called before or after the app has its settings and tasks, but before its worker, or its first connection.
    """
    app = app._get_current_object() if hasattr(app, "_get_current_object") else app
    if app in _installed:
        return
    _installed.add(app)
    if others := not isinstance(app, Kit):
        kind: Any = type(app)
        app.__class__ = _of_both(kind)
        _renew_parts(app)
    signals.connect(app)
    forked.connect(app)
    for module in AT_THE_BEGIN:
        module.connect()
    fixes.connect(app, parts.left_out)
    defaults.connect(app)
    security.connect(app)
    app.steps["consumer"].update(STEPS)
    health.install(app)
    dead_lettering.install(app)
    _prepare_the_process()
    for task in list(app._tasks.values()) if others else ():
        if type(task).__bound__ and task._app is app:
            _renew_task(app, task)
    if app.set_as_current and (_is_nobodys(_state.default_app) or _state.default_app is Kit._of_threads):
        # Celery makes an app the current one of the thread that imports it: in any other a shared task would be an app's
        # that nobody has made.
        app.set_default()
        Kit._of_threads = app


@cache
def _of_both(theirs: Any) -> Any:
    """The class of an app that was of class `theirs`."""
    if theirs is Celery:
        return Kit

    def reduced(app: Any) -> Any:
        make, (_, *arguments) = super(both, app).__reduce__()
        return _restored, (make, theirs, *arguments)

    both: Any = type(theirs.__name__, (theirs, Kit), {"__module__": theirs.__module__, "__reduce__": reduced})
    return both


def _restored(make: Any, theirs: Any, *arguments: Any) -> Any:
    """An app of a class of both again, from its pickle: that class has no name to import it by."""
    app = make(theirs, *arguments)
    install(app)
    return app


def _renew_parts(app: Any) -> None:
    """Let go of what Celery has made of its own classes. Connections stay open for other apps, which may share them."""
    for part in ("Task", "amqp", "events", "log"):
        vars(app).pop(part, None)
    app._pool = app._backend_cache = None
    app._local = threading.local()


def _renew_task(app: Any, task: Any) -> None:
    """Give a bound task the kit's class, and the app's settings of now where Celery has copied those of then.

    In place, by a class of its own: its module, and all who have imported the task, hold this instance; and its class may be
    another app's too.
    """
    kind, ours = type(task), symbol_by_name("celery_kit.produce.delay:Task")
    values = {name: app.conf[setting] for name, setting in kind.from_config if _is_copied(kind, name)}
    known = {name: value for name, value in values.items() if value is not None}
    bases = (kind,) if issubclass(kind, ours) else (kind, ours)
    task.__class__ = type(kind.__name__, bases, {"__module__": kind.__module__, "__doc__": kind.__doc__, **known})
    vars(task).pop("_exec_options", None)
    task.__class__._exec_options = None


def _is_copied(kind: type, name: str) -> bool:
    """Celery has copied this attribute from its settings when it bound a task: a class lists its attributes in the order of
    their making, and binding begins with `__bound__`. What the user has given stands before it.
    """
    owner = next((one for one in kind.__mro__ if name in vars(one)), object)
    order = list(vars(owner))
    return vars(owner).get("__bound__") is True and order.index(name) > order.index("__bound__")


@cache
def _prepare_the_process() -> None:
    """What a process has once, and not an app."""
    _, why = unless_refused(tracing.connect)
    if why:  # a web server that has an app of the kit goes on
        logger.warning("celery-kit: %s; there are no traces of the kit", why)
    runs.connect()
