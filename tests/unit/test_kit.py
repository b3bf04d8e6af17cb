"""What an app of the kit is: all that Celery's is, with the kit in it, and no other app of the process is touched."""

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import celery
import pytest
from celery import Celery, _state, shared_task
from celery.app.amqp import AMQP
from celery.app.control import Control
from celery.app.events import Events
from celery.app.log import Logging
from celery.app.task import Task
from celery.loaders.app import AppLoader

from celery_kit import Kit
from celery_kit.base.target import ROOT
from celery_kit.produce.delay import Task as KitsTask

REDIS = {"broker": "redis://127.0.0.1:1/0", "backend": "redis://127.0.0.1:1/1"}
AMQP_URL = "amqp://127.0.0.1:1//"


state: Any = _state  # Celery's stubs know little of it


def alone(**options: Any) -> Any:
    return Kit("alone", set_as_current=False, **{**REDIS, **options})


def plain(**options: Any) -> Any:
    return Celery("plain", set_as_current=False, **{**REDIS, **options})


def name(found: Any) -> str:
    return f"{found.__module__}.{found.__qualname__}"


# Another app of the process

LOOK = """
import json, sys
from celery import Celery, signals
from celery.app.backends import BACKEND_ALIASES
from kombu.transport import TRANSPORT_ALIASES
kit = sys.argv[1] == "with the kit"
if kit:
    from app import app
    app.connection().get_transport_cls(), app.backend, app.pool
seen = []
plain = Celery("plain", broker="memory://", backend="cache+memory://", set_as_current=False)
def publish(headers, **_):
    seen.append(sorted(headers))
signals.before_task_publish.connect(publish)
plain.send_task("some.task")
from celery.worker import components, control, loops, pidbox
from celery.worker.consumer import delayed_delivery
from celery.concurrency import asynpool
from celery.apps.worker import Worker
import celery.apps.worker as program, amqp, kombu.asynchronous.hub as hub
worker = plain.Worker(pool="solo", quiet=True)
said = [str(one) for one in (
    components._Timer, control.Panel.data["add_consumer"].__module__, control.Panel.data["time_limit"].__module__,
    "vitals" in control.Panel.data, loops._quick_drain.__module__, pidbox.Pidbox, pidbox.gPidbox,
    delayed_delivery.DelayedDelivery.start.__module__, asynpool.AsynPool.flush.__module__,
    program.install_worker_term_hard_handler.__module__, amqp.Connection.heartbeat_tick.__module__,
    hub.Hub._create_poller.__module__, signals.worker_shutting_down.receivers, worker.concurrency,
    sorted(map(str, worker.steps)) if hasattr(worker, "steps") else "",
)]
for url in ("redis://h/0", "rediss://h/0", "amqp://h//", "amqps://h//"):
    found = Celery("other", broker=url, set_as_current=False)
    with found.pool.acquire() as pooled:
        said += [str(found.connection().get_transport_cls()), str(pooled.get_transport_cls())]
said += [str(type(Celery("other", backend=url, set_as_current=False).backend)) for url in ("redis://h/0", "rpc://")]
said += [str(plain.Task.__mro__), str(type(plain.amqp))]
tables = [{name: one for name, one in table.items() if name != "embedded"} for table in (TRANSPORT_ALIASES, BACKEND_ALIASES)]
print(json.dumps([tables, seen, said]))  # the one name is added, and only the kit has it
"""


def look(how: str) -> list[Any]:
    given = {"ENGINE": "fast", "BROKER": "", "BACKEND": "", "PYTHONWARNINGS": "ignore"}
    urls = {"CELERY_BROKER_URL": "", "CELERY_RESULT_BACKEND": ""}
    program = ["-c", LOOK if how != "with the kit" else LOOK.replace("from app import app", FROM_HERE), how]
    done = subprocess.run(
        [sys.executable, *program], cwd=ROOT, env={**os.environ, **given, **urls}, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


FROM_HERE = """
    from app import Kit
    app = Kit("kit", broker="redis://h/0", backend="redis://h/0")
    Kit("another", broker="amqp://h//", backend="rpc://").connection().get_transport_cls()"""


def test_a_plain_app_is_the_same_with_the_kit_in_its_process_and_without() -> None:
    """What the kit changes belongs to its apps: no table, class, signal or pool of another app of the process."""
    assert look("with the kit") == look("without it")


def test_two_apps_on_one_url_have_each_a_pool_of_its_own_transport() -> None:
    """kombu keeps one pool for connections that are equal; whoever asks first must not decide for the other."""
    ours, theirs = alone(broker="memory://"), plain(broker="memory://")
    assert ours.pool is not theirs.pool and ours.pool is alone(broker="memory://").pool


# The transport of the kit's own

EVERY: dict[str, Callable[[Any], Any]] = {
    "connection": lambda app: app.connection(),
    "for_read": lambda app: app.connection_for_read(),
    "for_write": lambda app: app.connection_for_write(),
    "clone": lambda app: app.connection().clone(),
    "pool": lambda app: app.pool.acquire(block=True),
    "producer": lambda app: app.producer_pool.connections.acquire(block=True),
    "own options": lambda app: app.connection(transport_options={"visibility_timeout": 9}),
    "of another server": lambda app: app.connection_for_read("redis://elsewhere/3"),
}


@pytest.mark.parametrize("way", EVERY)
def test_every_connection_of_the_app_has_the_kits_transport(way: str) -> None:
    app = alone()
    assert name(EVERY[way](app).get_transport_cls()) == "celery_kit.brokers.redis.transport.Transport"
    app.close()


def test_each_broker_of_several_has_the_transport_of_its_scheme() -> None:
    """A failover switches from one to another of another kind."""
    connection = alone(broker="redis://127.0.0.1:1/0;amqp://127.0.0.1:1//").connection()
    found = []
    for _ in range(3):
        found.append(name(type(connection.transport)))
        connection.maybe_switch_next()
    redis = "celery_kit.brokers.redis.transport.Transport"
    assert found == [redis, "celery_kit.brokers.rabbitmq.transport.Transport", redis]


def test_a_transport_that_the_user_names_is_taken() -> None:
    app = alone(broker_transport="kombu.transport.memory:Transport")
    assert name(app.connection().get_transport_cls()) == "kombu.transport.memory.Transport"


def test_a_result_backend_that_the_user_puts_in_celerys_own_table_is_taken() -> None:
    app = alone(backend="redis://127.0.0.1:1/1")
    app.loader.override_backends = {"redis": "celery.backends.redis:RedisBackend"}
    assert name(type(app.backend)) == "celery.backends.redis.RedisBackend"
    assert name(type(alone().backend)) == "celery_kit.results.redis.store.Backend"


# A whole kit, from its arguments alone

GIVEN: dict[str, Callable[[str, Any], Any]] = {
    "an argument": lambda key, value: alone(**{key: value}),
    "changes": lambda key, value: alone(changes={key: value}),
    "an object": lambda key, value: _configured(alone(), SimpleNamespace(**{key: value})),
    "its source": lambda key, value: alone(config_source={key: value}),
    "a namespace": lambda key, value: _configured(alone(), SimpleNamespace(**{f"CELERY_{key.upper()}": value}), "CELERY"),
    "conf before it is read": lambda key, value: _updated(alone(), key, value, read=False),
    "conf once it is read": lambda key, value: _updated(alone(), key, value, read=True),
    "an object, once it is read": lambda key, value: _configured(_read(alone()), SimpleNamespace(**{key: value})),
    "its defaults": lambda key, value: _defaults(alone(), key, value),
}


def _read(app: Any) -> Any:
    assert app.conf.task_acks_late is True
    return app


def _configured(app: Any, source: Any, namespace: str | None = None) -> Any:
    app.config_from_object(source, namespace=namespace)
    return app


def _updated(app: Any, key: str, value: Any, read: bool) -> Any:
    setattr((_read(app) if read else app).conf, key, value)
    return app


def _defaults(app: Any, key: str, value: Any) -> Any:
    app.add_defaults({key: value})
    return app


@pytest.mark.parametrize("way", GIVEN)
def test_what_the_user_names_wins_and_all_else_is_the_kits(way: str) -> None:
    """However a user gives a setting: above the kit's, which stay above Celery's."""
    app = GIVEN[way]("task_acks_late", False)
    assert app.conf.task_acks_late is False
    assert app.conf.task_reject_on_worker_lost is True
    assert app.conf.result_backend_always_retry is True  # of Redis' room
    assert app.conf.task_default_queue == "celery"  # Celery's own


@pytest.mark.parametrize("way", [way for way in GIVEN if way.startswith("conf")])
def test_the_rooms_are_those_of_the_brokers_url_whenever_it_is_named(way: str) -> None:
    app = GIVEN[way]("broker_url", AMQP_URL)
    assert app.conf.task_default_queue_type == "quorum" and app.conf.broker_transport_options["confirm_publish"]


@pytest.mark.parametrize("way", ["an object", "its source", "a namespace", "an object, once it is read"])
def test_and_in_whatever_object_it_stands(way: str) -> None:
    source = {"CELERY_BROKER_URL" if way == "a namespace" else "broker_url": AMQP_URL}
    app: Any = Kit(set_as_current=False, config_source=source if way == "its source" else None)
    if way != "its source":
        app = _read(app) if "once" in way else app
        app.config_from_object(SimpleNamespace(**source), namespace="CELERY" if way == "a namespace" else None)
    assert app.conf.task_default_queue_type == "quorum" and app.conf.broker_transport_options["confirm_publish"]


def test_an_option_of_the_transport_that_the_user_names_leaves_the_others() -> None:
    """Celery's users name the visibility timeout; the engine and the bounded waits must not go with it."""
    options = alone(broker_transport_options={"visibility_timeout": 43_200}).connection().transport_options
    assert (options["visibility_timeout"], options["socket_timeout"], options["engine"]) == (43_200, 5, "fast")


def test_redis_holds_a_message_for_longer_than_the_users_time_limit() -> None:
    assert alone(task_time_limit=7_200).conf.broker_transport_options["visibility_timeout"] > 7_200


def test_the_engine_is_a_setting_of_the_app() -> None:
    app = alone(engine="plain")
    assert name(type(app.backend)) == "celery.backends.redis.RedisBackend"
    assert app.connection().transport_options["engine"] == "plain"


def test_a_server_without_a_room_has_what_is_the_same_for_all() -> None:
    app = alone(broker="memory://", backend="cache+memory://")
    assert app.conf.task_acks_late is True and not app.conf.broker_transport_options
    assert name(app.connection().get_transport_cls()) == "kombu.transport.memory.Transport"


def test_its_worker_is_the_kits() -> None:
    steps = {getattr(step, "__name__", step) for step in alone().steps["consumer"]}
    assert {
        "celery_kit.engine.fast_path:Step",
        "celery_kit.engine.commit_worker:Step",
        "DeadLettering",
        "Heartbeat",
        "celery_kit.worker.green_loop:GreenLoop",
    } <= steps


def test_the_names_of_its_tasks_are_celerys() -> None:
    assert alone().gen_task_name("bill", "app.tasks.shop") == plain().gen_task_name("bill", "app.tasks.shop")


# What the user, or a fixup, puts in


class MyAmqp(AMQP):
    mine = True


class MyEvents(Events):
    mine = True


class MyLog(Logging):
    mine = True


class MyControl(Control):
    mine = True


class MyTask(Task):  # type: ignore[type-arg]
    abstract = True
    mine = True
    calls: ClassVar[list[str]] = []

    def apply_async(self, *args: Any, **options: Any) -> Any:
        self.calls.append("apply_async")
        return super().apply_async(*args, **options)

    def delay_on_commit(self) -> str:
        return "on commit"


class MyLoader(AppLoader):
    mine = True


class Registry(celery.app.registry.TaskRegistry):
    mine = True


PARTS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "amqp": (MyAmqp, lambda app: app.amqp),
    "events": (MyEvents, lambda app: app.events),
    "log": (MyLog, lambda app: app.log),
    "control": (MyControl, lambda app: app.control),
    "task_cls": (MyTask, lambda app: app.Task),
    "loader": (MyLoader, lambda app: app.loader),
    "tasks": (Registry, lambda app: app._tasks),
}
ATTRIBUTES = {part: part if part.endswith("_cls") else f"{part}_cls" for part in PARTS} | {"tasks": "registry_cls"}


def _by_argument(kind: Any, part: str, theirs: Any) -> Any:
    return kind("x", set_as_current=False, **{part: theirs() if part == "tasks" else theirs})


def _by_name(kind: Any, part: str, theirs: Any) -> Any:
    given = theirs() if part == "tasks" else f"{theirs.__module__}:{theirs.__name__}"
    return kind("x", set_as_current=False, **{part: given})


def _by_attribute(kind: Any, part: str, theirs: Any) -> Any:
    return type("Mine", (kind,), {ATTRIBUTES[part]: theirs})("x", set_as_current=False)


def _by_fixup(kind: Any, part: str, theirs: Any) -> Any:
    """As Celery's own for Django: it names a class, unless the user has."""

    def fixup(app: Any) -> None:
        if not app._custom_task_cls_used:
            setattr(app, ATTRIBUTES[part], theirs)

    return kind("x", set_as_current=False, fixups=[fixup])


WAYS = {"argument": _by_argument, "name": _by_name, "attribute": _by_attribute, "fixup": _by_fixup}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", PARTS)
def test_a_class_of_the_users_or_a_fixups_is_there_as_on_celery(part: str, way: str) -> None:
    """Whatever Celery() would give with the same arguments and environment, Kit() gives too."""
    theirs, found = PARTS[part]
    ours, celerys = (getattr(found(WAYS[way](kind, part, theirs)), "mine", False) for kind in (Kit, Celery))
    assert ours == celerys


@pytest.mark.parametrize("part", ["amqp", "events", "log", "task_cls"])
def test_and_the_kits_own_is_in_it(part: str) -> None:
    theirs, found = PARTS[part]
    mine, without = found(_by_argument(Kit, part, theirs)), found(Kit("x", set_as_current=False))
    mro = (without if isinstance(without, type) else type(without)).__mro__
    kits = [one for one in mro if one.__module__.startswith("celery_kit.")][-1]
    assert issubclass(mine if isinstance(mine, type) else type(mine), kits)


def test_a_fixups_task_has_what_both_have_and_sees_each_call() -> None:
    app = Kit("x", set_as_current=False, broker="memory://", backend="cache+memory://", task_cls=MyTask)
    MyTask.calls.clear()

    @app.task(name="mine.task", shared=False)
    def mine() -> None: ...

    task: Any = mine
    for _ in range(3):
        task.delay()
    assert isinstance(task._get_current_object(), KitsTask) and task.delay_on_commit() == "on commit"
    assert MyTask.calls == ["apply_async"] * 3
    app.close()


@pytest.mark.parametrize(
    "given",
    [
        {"include": ["json"]}, {"autofinalize": False}, {"strict_typing": False}, {"namespace": "CELERY"},
        {"config_source": {"timezone": "Europe/Berlin"}}, {"changes": {"timezone": "Europe/Berlin"}}, {"fixups": []},
        {"timezone": "Europe/Berlin"}, {"config_source": "not.there", "config_source_silent": True},
    ],
    ids=str,
)  # fmt: skip
def test_every_argument_of_celerys_means_the_same(given: dict[str, Any]) -> None:
    ours, theirs = (kind("x", set_as_current=False, **given) for kind in (Kit, Celery))
    for attribute in ("autofinalize", "strict_typing", "namespace", "fixups", "main"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    for setting in ("include", "timezone", "imports"):
        assert ours.conf[setting] == theirs.conf[setting]


def test_it_is_pickled_as_celerys_is() -> None:
    """For children that are not forked."""
    again = pickle.loads(pickle.dumps(alone(task_cls=MyTask)))
    assert type(again) is Kit and again.conf.broker_url == REDIS["broker"] and getattr(again.Task, "mine", False)


def test_djangos_time_zone_counts() -> None:
    """Celery takes TIME_ZONE of Django's settings where it has no timezone of its own."""
    for kind in (Kit, Celery):
        app: Any = kind("x", set_as_current=False)
        app.config_from_object(SimpleNamespace(TIME_ZONE="Europe/Berlin"))
        assert app.conf.timezone == "Europe/Berlin"


# The app of other threads


@pytest.fixture
def nobodys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which no app has been made."""
    monkeypatch.setattr(state, "default_app", None)
    monkeypatch.setattr(Kit, "_of_threads", None)
    current = state._tls.current_app
    yield
    state._set_current_app(current)


@cache
def shared() -> Any:
    @shared_task(name="threads.shared")
    def nothing() -> None: ...

    return nothing


def here() -> Any:
    """The app that a shared task has."""
    return shared().app


def in_a_thread() -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(here()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("nobodys")
def test_a_shared_task_is_the_kits_in_every_thread() -> None:
    """Celery's current app is that of the importing thread: a web server's threads would have one that nobody made."""
    app = Kit("web", **REDIS)
    assert in_a_thread() is app and here() is app


@pytest.mark.usefixtures("nobodys")
def test_celerys_own_that_it_makes_where_there_is_none_gives_way() -> None:
    state.get_current_app()
    app = Kit("web", **REDIS)
    assert in_a_thread() is app


@pytest.mark.usefixtures("nobodys")
def test_of_several_the_last_one_is_everywhere_as_in_the_importing_thread() -> None:
    Kit("first", **REDIS)
    last = Kit("last", **REDIS)
    Kit("aside", set_as_current=False, **REDIS)
    assert in_a_thread() is last and here() is last


@pytest.mark.usefixtures("nobodys")
@pytest.mark.parametrize("kind", [Celery, Kit])
def test_one_that_the_user_makes_the_default_stays_it(kind: Any) -> None:
    chosen = kind("chosen", **REDIS)
    chosen.set_default()
    Kit("later", **REDIS)
    assert in_a_thread() is chosen
