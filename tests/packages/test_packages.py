"""Packages for Celery that people use do on the kit, on either engine, what they do on plain Celery."""

import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import pytest

from celery_kit.base.target import ROOT
from testbed.environments import PACKAGES
from tests.harness.ports import free_port
from tests.harness.waiting import until
from tests.packages.collector import Collector, collector
from tests.packages.conftest import Started, judge

Outcomes = Callable[..., dict[str, Any]]
#: What each scenario sends: two calls of a task, one by its name, one that fails.
WORKS, FAILS = "packages.works", "packages.fails"


def test_sentry(outcomes: Outcomes) -> None:
    """An error has its task's name, and it and each transaction of a worker belong to the producer's trace."""

    def scenario(start: Started) -> Any:
        with collector() as sentry, start("sentry", COLLECTOR=sentry.address) as side:
            trace = side.client("sentry:sent")

            def runs() -> list[dict[str, Any]]:
                ran = [line for line in sentry.lines if line.get("type") == "transaction" and "contexts" in line]
                return [one for one in ran if one["contexts"]["trace"]["op"] == "queue.task.celery"]

            def errors() -> list[dict[str, Any]]:
                return [line for line in sentry.lines if "exception" in line]

            until("Sentry has heard of each task", lambda: len(runs()) >= 4 and errors(), 20)
            spans = [span["op"] for one in runs() for span in one["spans"] if span["op"].startswith("queue.")]
            return {
                "transactions": sorted(one["transaction"] for one in runs()),
                "continued": [one["contexts"]["trace"]["trace_id"] == trace for one in runs()],
                "spans": sorted(set(spans)),
                "errors": [
                    (
                        one["exception"]["values"][-1]["type"],
                        one["extra"]["celery-job"]["task_name"],
                        one["contexts"]["trace"]["trace_id"] == trace,
                    )
                    for one in errors()
                ],
            }

    judge(
        "sentry-sdk",
        outcomes(scenario),
        {
            "transactions": [FAILS, WORKS, WORKS, WORKS],
            "continued": [True] * 4,
            "spans": ["queue.process"],
            "errors": [("ValueError", FAILS, True)],
        },
    )


def test_sentry_monitors_beat(outcomes: Outcomes, tmp_path: Path) -> None:
    """A monitor of an entry of beat's is checked in by beat and checked out by the worker."""

    def scenario(start: Started) -> Any:
        with (
            collector() as sentry,
            start("sentry", COLLECTOR=sentry.address) as side,
            closing(Beat(side, "-s", str(tmp_path / side.queue))),
        ):

            def said() -> list[tuple[str, str]]:
                return [(line["monitor_slug"], line["status"]) for line in sentry.lines if "monitor_slug" in line]

            until("Sentry has heard of the entry's end", lambda: ("often", "ok") in said(), 40)
            return sorted(set(said()))

    judge("sentry-sdk", outcomes(scenario), [("often", "in_progress"), ("often", "ok")])


def test_opentelemetry(outcomes: Outcomes) -> None:
    """The span of each run has the span that sent the task as its parent."""

    def scenario(start: Started) -> Any:
        with collector() as spans, start("otel", COLLECTOR=spans.address) as side:
            trace = side.client("otel:sent")
            until("each task has its span", lambda: len(_named(spans, "run/")) >= 4, 20)
            sent = {one["context"]["span_id"] for one in _named(spans, "apply_async/")}
            return sorted(
                (one["name"], one["context"]["trace_id"] == trace, one["parent_id"] in sent, one["status"]["status_code"])
                for one in _named(spans, "run/")
            )

    good = (f"run/{WORKS}", True, True, "UNSET")
    judge("opentelemetry-instrumentation-celery", outcomes(scenario), [(f"run/{FAILS}", True, True, "ERROR"), good, good, good])


def _named(spans: Collector, prefix: str) -> list[dict[str, Any]]:
    return [one for one in spans.lines if one["name"].startswith(prefix)]


def test_elastic_apm(outcomes: Outcomes) -> None:
    """A task's transaction has its outcome and the producer's trace, and an error has the task's name."""

    def scenario(start: Started) -> Any:
        with collector() as apm, start("apm", COLLECTOR=apm.address) as side:
            trace = side.client("apm:sent")

            def runs() -> list[dict[str, Any]]:
                return [line["transaction"] for line in apm.lines if line.get("transaction", {}).get("type") == "celery"]

            def errors() -> list[dict[str, Any]]:
                return [line["error"] for line in apm.lines if "error" in line]

            until("the APM server has heard of each task", lambda: len(runs()) >= 4 and errors(), 20)
            return {
                "runs": sorted((one["name"], one["result"], one["outcome"], one["trace_id"] == trace) for one in runs()),
                "errors": [(one["exception"]["type"], one["trace_id"] == trace) for one in errors()],
            }

    module = "tests.packages.cases.tasks"
    good = (f"{module}.works", "SUCCESS", "success", True)
    expected = {"runs": [(f"{module}.fails", "FAILURE", "failure", True), good, good, good], "errors": [("ValueError", True)]}
    judge("elastic-apm", outcomes(scenario), expected)


@pytest.mark.parametrize("pool", ("prefork", "threads", "solo"))
def test_celery_batches(outcomes: Outcomes, pool: str) -> None:
    """A batch is run when it is full or old, and each of its messages gets a result."""

    def scenario(start: Started) -> Any:
        with start("batches", "--prefetch-multiplier", "10", pool=pool) as side:
            return side.client("batches:by_count"), side.client("batches:by_time")

    full = [{"square": number**2, "together": 4} for number in range(4)]
    judge("celery-batches", outcomes(scenario), (full, [0, 1]))


def test_celery_singleton(outcomes: Outcomes) -> None:
    """A task that waits or runs gives its id to a second call, until it ends."""

    def scenario(start: Started) -> Any:
        with start("singleton") as side:
            return side.client("singleton:sent")

    judge("celery-singleton", outcomes(scenario), {"second is the first": True, "another is its own": True, "value": "a"})


def test_celery_once(outcomes: Outcomes) -> None:
    """A task that waits or runs is not sent again, until it ends."""

    def scenario(start: Started) -> Any:
        with start("queue_once") as side:
            return side.client("queue_once:sent")

    judge("celery-once", outcomes(scenario), {"second": True, "graceful": "REJECTED", "value": "a"})


def test_celery_redbeat(outcomes: Outcomes) -> None:
    """An entry that a program writes into Redis is sent by beat, again and again."""

    def scenario(start: Started) -> Any:
        with start("redbeat_entry") as side, closing(Beat(side, "-S", "redbeat.RedBeatScheduler", "--max-interval", "1")):
            return side.client("redbeat_entry:written")

    judge("celery-redbeat", outcomes(scenario), {"ran": "by redbeat", "counted": True})


def test_django_sends_on_commit(outcomes: Outcomes, tmp_path: Path) -> None:
    """The task class of Celery's fixup for Django is the app's: `delay_on_commit` sends once the transaction is committed."""

    def scenario(start: Started) -> Any:
        with start("django_project", **_project(tmp_path)) as side:
            return side.client("django_project:on_commit")

    judge("django", outcomes(scenario), ["at once", "committed"])


def test_django_celery_results(outcomes: Outcomes, tmp_path: Path) -> None:
    """Results and errors are rows of the project's database, with the task's name and its worker."""

    def scenario(start: Started) -> Any:
        with start("django_project", **_project(tmp_path), CELERY_RESULT_BACKEND="", DJANGO_BACKEND="django-db") as side:
            return side.client("django_project:kept")

    broken = '{"exc_type": "ValueError", "exc_message": ["broken"], "exc_module": "builtins"}'
    expected = {
        "value": "kept",
        "error": "broken",
        "good": ["SUCCESS", WORKS, '"kept"', True, False],
        "bad": ["FAILURE", FAILS, broken, True, True],
    }
    judge("django-celery-results", outcomes(scenario), expected)


def test_django_celery_beat(outcomes: Outcomes, tmp_path: Path) -> None:
    """An entry that is written into the project's database is sent by beat, and its results name it."""

    def scenario(start: Started) -> Any:
        project = {**_project(tmp_path), "CELERY_RESULT_BACKEND": "", "DJANGO_BACKEND": "django-db"}
        scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
        with start("django_project", **project) as side, closing(Beat(side, "-S", scheduler, "--max-interval", "1")):
            return side.client("django_project:scheduled")

    judge("django-celery-beat", outcomes(scenario), {"value": '"by beat"'})


def test_flower(outcomes: Outcomes) -> None:
    """Flower's metrics count each event of a worker that sends them."""

    def scenario(start: Started) -> Any:
        port = free_port()
        with start("events", "-E") as side:
            flower = side.python("-m", "celery", "-A", "tests.compat.side", "flower", "--address=127.0.0.1", f"--port={port}")
            with closing(Process(flower)):

                def counted(kind: str, task: str) -> float:
                    return _sum(port, "flower_events_total", f'type="task-{kind}"', f'task="{task}"')

                return _events(side, port, counted)

    judge("flower", outcomes(scenario), {"succeeded": 3.0, "failed": 1.0})


def test_celery_prometheus_exporter(outcomes: Outcomes) -> None:
    """A listener that knows nothing of the kit counts what its workers say of their tasks."""

    def scenario(start: Started) -> Any:
        port = free_port()
        with start("events", "-E") as side:
            argv = ["--broker", side.place.broker, "--addr", f"127.0.0.1:{port}"]
            exporter = side.python("-m", "celery_prometheus_exporter", *argv)
            states = {"succeeded": "SUCCESS", "failed": "FAILURE"}
            with closing(Process(exporter)):

                def counted(kind: str, task: str) -> float:
                    return _sum(port, "celery_tasks_by_name", f'state="{states[kind]}"', f'name="{task}"')

                return _events(side, port, counted)

    judge("celery-prometheus-exporter", outcomes(scenario), {"succeeded": 3.0, "failed": 1.0})


class Process:
    """A process that a scenario ends."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Beat(Process):
    """A side's beat."""

    def __init__(self, side: Any, *options: str) -> None:
        argv = ["-m", "celery", "-A", "tests.compat.side", "beat", "-l", "INFO", "--pidfile=", *options]
        super().__init__(side.python(*argv))


def _project(folder: Path) -> dict[str, str]:
    """The variables of a Django project with a database of its own."""
    environ = {"DJANGO_SETTINGS_MODULE": "tests.packages.django_settings", "DATABASE": str(folder / f"{uuid4().hex}.sqlite3")}
    migrate = [PACKAGES.command("python"), "-m", "django", "migrate", "--verbosity", "0"]
    subprocess.run(migrate, cwd=ROOT, env=environ, check=True)
    return environ


def _page(port: int) -> str:
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
            return str(page.read().decode())
    except OSError:
        return ""


def _sum(port: int, *words: str) -> float:
    """What all series of a page of metrics say together whose line has these words."""
    lines = [line for line in _page(port).splitlines() if all(word in line for word in words)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def _events(side: Any, port: int, counted: Callable[[str, str], float]) -> dict[str, float]:
    """Once the listener has heard of the worker, what it counts of a client's tasks."""
    until("the listener answers", lambda: _page(port), 40)

    def listens() -> bool:
        side.client("events:warm")
        return counted("succeeded", "packages.warm") >= 1

    until("the listener hears of tasks", listens, 40)
    side.client("events:sent")
    until("it counts the failure", lambda: counted("failed", FAILS), 20)
    return {"succeeded": counted("succeeded", WORKS), "failed": counted("failed", FAILS)}
