"""A Celery app that exists, and is given the kit: all that `Kit()` has, and no other app is touched."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from celery import Celery
from celery.app.amqp import AMQP
from celery.app.task import Task

from celery_kit import Kit, install
from celery_kit.base.target import ROOT
from celery_kit.defaults import contradictions
from celery_kit.produce.delay import Task as KitsTask
from tests.unit.test_kit import REDIS, alone, name, plain


class Shop(Celery):
    """A team's own class of apps."""

    sent: list[str]

    def gen_task_name(self, name: str, module: str) -> str:
        return f"shop.{name}"

    def send_task(self, *args: Any, **options: Any) -> Any:
        self.sent.append(args[0])
        return super().send_task(*args, **options)


class MyAmqp(AMQP):
    mine = True


class Bill(Task):  # type: ignore[type-arg]
    """A class-based task that says some things itself."""

    name = "bill"
    track_started = False

    def run(self) -> str:
        return "billed"


def shop(**options: Any) -> Any:
    app = Shop("shop", set_as_current=False, **{**REDIS, **options})
    app.sent = []
    return app


def installed(app: Any) -> Any:
    install(app)
    return app


def used(app: Any) -> Any:
    """One whose parts Celery has made by now."""
    assert app.conf.task_acks_late is False
    app.amqp, app.events, app.log, app.Task, app.backend, app.pool, app.control  # noqa: B018
    app.finalize()
    return app


MADE: dict[str, Callable[[], Any]] = {"new": plain, "used": lambda: used(plain()), "of a class": shop}
MADE["of a class, used"] = lambda: used(shop())


@pytest.mark.parametrize("how", MADE)
def test_an_app_that_exists_has_what_the_kits_own_has(how: str) -> None:
    app, ours = installed(MADE[how]()), alone()
    for part in ("amqp", "events", "log", "backend"):
        assert isinstance(getattr(app, part), type(getattr(ours, part))), part
    assert issubclass(app.Task, KitsTask)
    assert {str(step) for step in ours.steps["consumer"]} == {str(step) for step in app.steps["consumer"]}
    assert app.conf.task_acks_late is True and app.conf.result_backend_always_retry is True
    assert name(app.connection().get_transport_cls()) == name(ours.connection().get_transport_cls())
    assert name(app.pool.connection.get_transport_cls()) == "celery_kit.brokers.redis.transport.Transport"
    assert app.spooled is None and app.delays is not None


def test_its_own_class_comes_first() -> None:
    app = installed(shop(broker="memory://", backend="cache+memory://"))
    assert isinstance(app, Shop) and isinstance(app, Kit) and type(app).__name__ == "Shop"
    assert app.gen_task_name("bill", "x") == "shop.bill"
    app.send_task("x.y")
    assert app.sent == ["x.y"]
    assert type(installed(shop())) is type(app) and type(shop()) is Shop


def test_twice_is_once() -> None:
    app = installed(plain())
    steps, kind, maps = set(app.steps["consumer"]), type(app), len(app.conf.maps)
    install(app)
    assert (set(app.steps["consumer"]), type(app), len(app.conf.maps)) == (steps, kind, maps)
    ours = alone()
    install(ours)
    assert type(ours) is Kit


def test_another_app_of_the_process_stays_plain() -> None:
    other, ours = used(plain()), installed(used(plain()))
    assert type(other) is Celery and type(other.amqp) is AMQP and not issubclass(other.Task, KitsTask)
    assert other.pool is not ours.pool and other.pool is plain().pool
    assert other.conf.task_acks_late is False and not issubclass(Task, KitsTask)


def configured(app: Any, source: Any) -> Any:
    app.config_from_object(source)
    return app


GIVEN: dict[str, Callable[[Any], Any]] = {
    "before": lambda source: installed(configured(plain(), source)),
    "before, and read": lambda source: installed(used(configured(plain(), source))),
    "after": lambda source: configured(installed(plain()), source),
    "after, and read before": lambda source: configured(installed(used(plain())), source),
}


@pytest.mark.parametrize("when", GIVEN)
@pytest.mark.parametrize("spelled", ["task_track_started", "CELERY_TRACK_STARTED"])
def test_what_the_app_names_wins_whenever_it_is_read(when: str, spelled: str) -> None:
    """In Celery's old names, too."""
    app = GIVEN[when](SimpleNamespace(**{spelled: False}))
    assert app.conf.task_track_started is False and app.conf.task_acks_late is True


def test_their_logging_is_left_alone() -> None:
    app = configured(installed(plain()), SimpleNamespace(CELERYD_HIJACK_ROOT_LOGGER=True))
    assert app.conf.worker_hijack_root_logger is True


def test_no_task_ends_sooner_than_with_celery() -> None:
    for app in (installed(plain()), alone()):
        assert app.conf.task_time_limit is None and app.conf.task_soft_time_limit is None
    with patch.dict(os.environ, {"TASK_TIME_LIMIT": "60"}):
        assert installed(plain()).conf.task_time_limit == 60
    assert installed(plain(task_time_limit=7_200)).conf.broker_transport_options["visibility_timeout"] > 7_200


@pytest.mark.parametrize(
    ("limit", "lease", "held", "said"),
    [(None, 15, 200, ""), (600, 15, 200, ""), (60, 200, 3_600, "contradicts WORKER_LEASE=200")],
)
def test_a_visibility_timeout_is_longer_than_the_lease_and_not_than_a_task(
    limit: int | None, lease: int, held: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with patch.dict(os.environ, {"VISIBILITY_TIMEOUT": "200", "WORKER_LEASE": str(lease)}):
        conf = installed(plain(task_time_limit=limit)).conf
        assert conf.broker_transport_options["visibility_timeout"] == held
    assert said in caplog.text and bool(said) == ("VISIBILITY_TIMEOUT" in caplog.text)


# Tasks


def tasks(app: Any) -> dict[str, Any]:
    """One of each kind, as a team's modules have them."""

    @app.task(name="plain", shared=False)
    def plain_one() -> None: ...

    @app.task(name="named", acks_late=False, base=Bill, shared=False)
    def named() -> None: ...

    return {"plain": plain_one, "named": named, "bill": app.register_task(Bill())}


@pytest.mark.parametrize("when", ["before", "after", "after, and finalized"])
def test_tasks_have_the_settings_of_now_and_what_they_say_themselves(when: str) -> None:
    app = installed(plain()) if when == "before" else plain()
    found = tasks(app)
    if "finalized" in when:
        app.finalize()
        assert found["plain"].acks_late is False
    install(app)
    app.finalize()
    seen = {name: (task.acks_late, task.reject_on_worker_lost, task.track_started) for name, task in found.items()}
    assert seen == {"plain": (True, True, True), "named": (False, True, False), "bill": (True, True, False)}
    assert all(app.tasks[name] == task for name, task in found.items())
    assert isinstance(found["plain"]._get_current_object(), KitsTask)
    assert found["bill"].run() == "billed" and found["bill"].app is app


def test_a_class_that_two_apps_share_is_left_alone() -> None:
    ours = plain()
    one = ours.register_task(Bill())
    install(ours)
    assert type(one) is not Bill and isinstance(one, Bill) and isinstance(one, KitsTask) and not issubclass(Bill, KitsTask)


def test_a_bound_task_is_sent_by_the_kit() -> None:
    app = used(plain(broker="memory://", backend="cache+memory://"))
    found = tasks(app)
    app.finalize()
    install(app)
    seen: list[str] = []
    with patch.object(type(app.delays), "send", lambda _, task, *__: seen.append(task.name)):
        found["plain"].delay()
    assert seen == ["plain"]


def test_it_is_pickled_as_what_it_is() -> None:
    """For children that are not forked."""
    for app in (installed(plain(amqp=MyAmqp)), installed(shop(amqp=MyAmqp))):
        again = pickle.loads(pickle.dumps(app))
        assert type(again) is type(app) and isinstance(again.amqp, MyAmqp) and again.conf.task_acks_late is True


# What a process of somebody else's has in its environment


@pytest.mark.parametrize("variable", ["LOG_FORMAT", "ENGINE", "POOL", "BROKER", "TASK_TIME_LIMIT", "TIMEZONE", "SPOOL_MOST"])
def test_a_variable_that_means_something_else_ends_no_process(variable: str, caplog: pytest.LogCaptureFixture) -> None:
    with patch.dict(os.environ, {variable: "%(asctime)s"}):
        conf = installed(plain()).conf
        assert conf.task_acks_late is True and conf.engine == "fast" and conf.task_time_limit is None
    lines = [line for line in caplog.messages if line.startswith(f"celery-kit: {variable}=")]
    assert len(lines) == (variable != "BROKER")  # which an app's own settings answer


TRACES = """
import celery, celery_kit
app = celery.Celery("shop", broker="memory://", backend="cache+memory://")
if ours := "opentelemetry" in __import__("sys").argv:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    trace.set_tracer_provider(provider := TracerProvider())
celery_kit.install(app)
print(trace.get_tracer_provider() is provider if ours else app.conf.task_acks_late)
"""


@pytest.mark.parametrize(("exporter", "argv", "warnings"), [("jaeger", (), 1), ("otlp", ("opentelemetry",), 0)])
def test_a_projects_own_tracing_is_left_alone(exporter: str, argv: tuple[str, ...], warnings: int) -> None:
    """An exporter of theirs that the kit does not know ends no process, and a provider that they have set up stays."""
    environ = {**os.environ, "OTEL_TRACES_EXPORTER": exporter}
    whole = [sys.executable, "-W", "ignore", "-c", TRACES, *argv]
    ran = subprocess.run(whole, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert ran.stdout == "True\n" and ran.stderr.count("celery-kit: ") == len(ran.stderr.splitlines()) == warnings, ran.stderr


def test_signing_that_cannot_be_had_is_refused_all_the_same() -> None:
    with patch.dict(os.environ, {"SECURITY_KEY": "/nowhere"}), pytest.raises(SystemExit):
        installed(plain()).conf.task_acks_late  # noqa: B018


CONTRADICT: dict[str, dict[str, Any]] = {
    "task_acks_late=False": {"task_acks_late": False},
    "task_reject_on_worker_lost=False": {"task_reject_on_worker_lost": False},
    "visibility_timeout is not longer than WORKER_LEASE": {"broker_transport_options": {"visibility_timeout": 15}},
    "confirm_publish=False": {"broker_transport_options": {"confirm_publish": False}},
    "engine=5 is not one": {"engine": 5},
}


@pytest.mark.parametrize("said", CONTRADICT)
def test_a_setting_that_contradicts_the_kit_is_one_line(said: str) -> None:
    (line,) = contradictions(installed(plain(**CONTRADICT[said])).conf)
    assert said in line and "\n" not in line


def test_settings_of_the_kits_own_contradict_nothing() -> None:
    assert not contradictions(alone().conf)


LOGGING = """
import logging, sys
from celery import Celery, signals
import celery_kit
app = Celery("shop", broker="memory://", backend="cache+memory://")
celery_kit.install(app)
if "by the signal" in sys.argv:
    signals.setup_logging.connect(lambda **_: None, weak=False)
app.log.setup_logging_subsystem(loglevel="INFO")
signals.celeryd_after_setup.send(sender="w", instance=app.Worker(pool="solo", quiet=True), conf=app.conf)
print(len(logging.getLogger("celery.worker.strategy").filters))
"""


@pytest.mark.parametrize(("how", "filters"), [("by celery", "1"), ("by the signal", "0")])
def test_logging_that_the_user_sets_up_has_celerys_lines(how: str, filters: str) -> None:
    ran = subprocess.run([sys.executable, "-c", LOGGING, how], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == [filters], ran.stderr
