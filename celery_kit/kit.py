"""The kit's app: a Celery app with the kit's parts. Other apps of the process are not changed.

docs/apps.md lists what is changed for the whole process nevertheless.

`install` gives an existing app the same class as `Kit()` has. Celery looks up `amqp`, `send_task`, `Task` and the backend on
the app's class, and has no hook for them. Functions set on the instance would be lost when the app is pickled, and could not
call what they replace. So `app.__class__` becomes a class of both, the user's first. Parts that Celery has created and cached
by then are created again, and tasks that it has bound by then read their settings again.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

from celery import Celery
from celery import _state as state
from celery.app.control import Control
from celery.app.events import Events
from celery.app.log import Logging
from celery.utils import imports

from celery_kit import defaults, fixes, forked, results
from celery_kit.base import security, signals
from celery_kit.base.refusals import unless_refused
from celery_kit.base.types import AnyResult, AnyTask, ResultBackend
from celery_kit.engine import parts, pipes, prefetch
from celery_kit.fixes import delayed_messages
from celery_kit.observe import health, runs, tracing, vitals
from celery_kit.pools import table
from celery_kit.produce import alike, delay, spool
from celery_kit.profile import once_url
from celery_kit.results import bound
from celery_kit.worker import dead_lettering, grace

if TYPE_CHECKING:
    from celery_kit.produce.publishing import AMQP
    from celery_kit.results.redis.claims import Claims

#: By name, so that producers do not import a worker's modules.
STEPS = [
    f"celery_kit.{module}:Step"
    for module in (
        "brokers.rabbitmq.expired",
        "engine.commit_worker",
        "engine.fast_path",
        "observe.events",
        "worker.failed",
        "worker.pausing",
    )
]
#: Modules that prepare the workers of the kit's apps when they start.
AT_THE_START = (table, prefetch, pipes, vitals, grace)

logger = logging.getLogger(__name__)
_installed: "WeakSet[Celery]" = WeakSet()
#: It also takes a class, which the stubs do not know.
_class_named: Callable[[str | type | None], type] = vars(imports)["symbol_by_name"]


class Kit(Celery):
    """A Celery app with the kit's parts. It takes the same arguments as Celery.

    If the user or a fixup names a class (amqp, events, log, task_cls, by argument or attribute), it is combined with the kit's.
    """

    #: The app that the kit itself made the default, for threads that have no current app.
    _of_threads: ClassVar[Celery | None] = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        install(self)

    def set_default(self) -> None:
        """Make it the current app of all threads that have none. As Celery's; the kit does not replace it by another."""
        Kit._of_threads = None
        super().set_default()

    @cached_property
    def amqp(self) -> "AMQP":
        """Celery's AMQP of the app, combined with the kit's."""
        found: AMQP = combined(self.amqp_cls, "celery_kit.produce.publishing:AMQP")(app=self)
        return found

    @cached_property
    def events(self) -> Events:
        """Celery's events of the app, combined with the kit's."""
        kits = "celery_kit.fixes.event_loop:Events" if fixes.needed("events_in_the_loop") else self.events_cls
        found: Events = combined(self.events_cls, kits)(app=self)
        vars(found)["dispatcher_cls"] = combined(found.dispatcher_cls, "celery_kit.observe.events:Dispatcher")
        vars(found)["receiver_cls"] = combined(found.receiver_cls, "celery_kit.observe.control:Receiver")
        return found

    @cached_property
    def control(self) -> Control:
        """Celery's remote control of the app, combined with the kit's."""
        found: Control = combined(self.control_cls, "celery_kit.observe.control:Control")(app=self)
        return found

    @cached_property
    def log(self) -> Logging:
        """Celery's logging setup of the app, combined with the kit's."""
        found: Logging = combined(self.log_cls, "celery_kit.observe.logs:Logging")(app=self)
        return found

    def create_task_cls(self) -> type:
        """The base class of the app's tasks. As Celery's, combined with the kit's."""
        both = combined(self.task_cls, "celery_kit.produce.delay:Task")
        return self.subclass_with_self(both, name="Task", attribute="_app", keep_reduce=True, abstract=True)

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        *more: Any,
        **options: Any,
    ) -> AnyResult:
        """Send a task by its name. As Celery's, with the kit's fast path and spool.

        `countdown`: seconds. Raises OperationalError if the broker does not accept the task in time and there is no spool.
        """
        alike = not more and countdown is None and eta is None and options.keys() <= delay.KEPT
        if alike:
            sent: AnyResult | None = self.delays.send(delay.Named(self, name), args or (), kwargs or {}, options)
            if sent:
                return sent
        records = hasattr(options.get("producer"), "records")  # celery_kit/produce/bulk.py: nothing is sent yet
        if more or not self.spooled or records:
            return self._send(name, args, kwargs, countdown, eta, *more, **options)
        return self.spooled.send_task(name, args, kwargs, countdown, eta, options)

    def _send(
        self,
        name: str,
        args: Sequence[Any] | None,
        kwargs: dict[str, Any] | None,
        countdown: float | None = None,
        eta: datetime | None = None,
        *more: Any,
        **options: Any,
    ) -> AnyResult:
        delayed = countdown or eta
        if (delayed or options.get("routing_key")) and self.conf.task_default_queue_type == "quorum":
            # The broker itself delays tasks. Tasks without a delay must not get here: it would slow each `delay()` down.
            if fixes.needed("retry_queue"):
                options = delayed_messages.named(options)
            if delayed and fixes.needed("delayed_queue"):
                self.delayed.prepare(name, args, kwargs, options)
            if delayed and fixes.needed("short_delays"):
                countdown, eta = delayed_messages.rounded_up(countdown, eta, self.now())
        return super().send_task(name, args, kwargs, countdown, eta, *more, **options)

    @cached_property
    def delayed(self) -> delayed_messages.Delayed:
        """Binds queues to delayed delivery (celery_kit/fixes/delayed_messages.py)."""
        return delayed_messages.Delayed(self)

    @cached_property
    def delays(self) -> delay.Delays:
        """The fast path of `delay()`: it reuses the message of an earlier call (celery_kit/produce/delay.py)."""
        return delay.Delays(self)

    @cached_property
    def spooled(self) -> spool.Spooled | None:
        """Stores tasks while the broker is unavailable (celery_kit/produce/spool.py). None without SPOOL."""
        return spool.Spooled(self, self._send) if self.conf.get("spool") else None

    def _get_backend(self) -> ResultBackend:
        # Celery's table of an app's own backends; the user's entries win.
        self.loader.override_backends = {**results.classes(self.conf.engine), **self.loader.override_backends}
        backend: ResultBackend = super()._get_backend()  # type: ignore[misc]
        room = results.room(self.conf.result_backend)
        # Whether a backend is thread-safe is only known for the kit's.
        backend.thread_safe = backend.thread_safe and bool(room and room.thread_safe)
        if room and room.adapt:
            room.adapt(backend)
            forked.watch(backend)
        if self.conf.security_key:
            bound.bind(backend)
        return backend

    @cached_property
    def signature_store(self) -> "Claims | None":
        """A store that all workers share, for the signatures that were used: that of ONCE_URL, of results, or the broker."""
        for url in (once_url(), self.conf.result_backend, self.conf.broker_read_url):
            if (room := results.room(url)) and room.claims:
                return room.claims(self, str(url))
        return None


def combined(named: str | type | None, kits: str | type | None) -> type:
    """The kit's class if `named` is Celery's own; otherwise a class of both, with the user's first.

    Both may be given as "module:class". Anything but a class, such as a factory, is returned as it is.
    """
    theirs, ours = _class_named(named), _class_named(kits)
    if not isinstance(theirs, type) or issubclass(theirs, ours):
        return theirs
    return ours if issubclass(ours, theirs) else type(theirs.__name__, (theirs, ours), {"__module__": theirs.__module__})


def _is_celerys_own(app: Celery | None) -> bool:
    """Whether there is no default app, or only the one that Celery creates for itself if nobody else has."""
    return app is None or (type(app) is Celery and app.main == "default" and not vars(app)["set_as_current"])


alike.OWN_FILES.add(__file__)  # of `send_task`


def install(app: Celery) -> None:
    """Install the kit in `app`, an existing Celery app or a proxy for one, as `Kit()` does. A second call does nothing.

    Call it before or after the app has its settings and tasks, but before its worker starts or its first connection is opened.
    """
    app = app._get_current_object() if hasattr(app, "_get_current_object") else app
    if app in _installed:
        return
    _installed.add(app)
    if others := not isinstance(app, Kit):
        kind: type = type(app)
        app.__class__ = _of_both(kind)
        _renew_parts(app)
    signals.connect(app)
    forked.connect(app)
    for module in AT_THE_START:
        module.connect()
    fixes.connect(app, parts.left_out)
    defaults.connect(app)
    security.connect(app)
    app.steps["consumer"].update(STEPS)
    health.install(app)
    dead_lettering.install(app)
    _prepare_the_process()
    tasks: dict[str, AnyTask] = vars(app)["_tasks"]
    for task in list(tasks.values()) if others else ():
        if getattr(type(task), "__bound__", False) and getattr(task, "_app", None) is app:
            _renew_task(app, task)
    default: Celery | None = vars(state)["default_app"]
    if vars(app)["set_as_current"] and (_is_celerys_own(default) or default is Kit._of_threads):
        # Celery makes an app the current one only of the thread that imports it. In any other thread a shared task would
        # belong to an app that Celery creates for itself.
        app.set_default()
        Kit._of_threads = app


@cache
def _of_both(theirs: type) -> type[Celery]:
    """The new class for an app of class `theirs`."""
    if theirs is Celery:
        return Kit

    def reduced(app: Celery) -> tuple[object, ...]:
        make, (_, *arguments) = super(both, app).__reduce__()
        return _restored, (make, theirs, *arguments)

    both: Any = type(theirs.__name__, (theirs, Kit), {"__module__": theirs.__module__, "__reduce__": reduced})
    found: type[Celery] = both
    return found


def _restored(make: Callable[..., Celery], theirs: type, *arguments: object) -> Celery:
    """An unpickled app with a class of both. The pickle names the user's class, because that of both cannot be imported."""
    app = make(theirs, *arguments)
    install(app)
    return app


def _renew_parts(app: Celery) -> None:
    """Drop the instances of Celery's own classes. Connections stay open, because other apps may share them."""
    for part in ("Task", "amqp", "control", "events", "log"):
        vars(app).pop(part, None)
    vars(app).update(_pool=None, _backend_cache=None, _local=threading.local())


def _renew_task(app: Celery, task: AnyTask) -> None:
    """Give a bound task the kit's class, and the app's current settings where Celery has copied earlier ones.

    The instance stays, because its module and all that have imported the task refer to it. It gets a class of its own, because
    another app's task may share the class.
    """
    kind: type = type(task)
    ours = _class_named("celery_kit.produce.delay:Task")
    copied: Sequence[tuple[str, str]] = getattr(kind, "from_config", ())
    values = {name: app.conf[setting] for name, setting in copied if _is_copied(kind, name)}
    known = {name: value for name, value in values.items() if value is not None}
    bases = (kind,) if issubclass(kind, ours) else (kind, ours)
    about = {"__module__": kind.__module__, "__doc__": kind.__doc__, "_exec_options": None}
    task.__class__ = type(kind.__name__, bases, {**about, **known})
    vars(task).pop("_exec_options", None)


def _is_copied(kind: type, name: str) -> bool:
    """Whether Celery copied this attribute from its settings when it bound a task, and the user did not set it.

    A class lists its attributes in the order in which they were set, and binding sets `__bound__` first. The user's are before.
    """
    owner = next((one for one in kind.__mro__ if name in vars(one)), object)
    order = list(vars(owner))
    return vars(owner).get("__bound__") is True and order.index(name) > order.index("__bound__")


@cache
def _prepare_the_process() -> None:
    """Set up what belongs to the process, not to an app."""
    _, why = unless_refused(tracing.connect)
    if why:  # not fatal for a web server that has an app of the kit
        logger.warning("celery-kit: %s; tracing is off", why)
    runs.connect()
