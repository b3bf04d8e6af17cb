"""Codebases as users have them, with the kit's wheel and its change of two lines: on each broker, with two pools."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat.rig import Place
from tests.examples.rig import Project, kill
from tests.examples.table import CHOSEN, EXAMPLES
from tests.harness.waiting import until

Places = Callable[[str], Place]

#: In seconds: the first test installs what all of the examples need, from an index that may be slow.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", params=CHOSEN, ids="-".join)
def started(
    request: pytest.FixtureRequest, places: Places, python: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, str]:
    """A project with the kit's change, on a broker of its own queues; and the pool of its workers."""
    name, broker, pool = request.param
    return Project.of(EXAMPLES[name], tmp_path_factory.mktemp(name) / name, python, places(broker)), pool


def test_what_celery_gives_it_gives_with_the_kit(started: tuple[Project, str]) -> None:
    """A task, a failure, which is kept, a retry, a chord; `celery inspect ping` and the kit's own tools."""
    project, pool = started
    example = project.example
    with project.worker(pool) as (node, _, log):
        found = project.ask(*(call for call, _ in example.calls.values()))
        assert dict(zip(example.calls, found, strict=True)) == {what: gives for what, (_, gives) in example.calls.items()}

        assert "pong" in project.done("celery", "-A", example.app, "inspect", "ping", "-d", node)
        status = project.done("celery-kit", "--app", example.app, "status")
        (row,) = [line.split() for line in status.splitlines() if line.startswith(node)]
        assert row[1] == pool and "consuming" in row, status  # a worker of plain Celery does not tell its pool
        *letters, _ = project.done("celery-kit", "--app", example.app, "dead").splitlines()
        assert letters and all(line.startswith("failed ") for line in letters), letters
        said = log.read_text()
        assert "celery-kit: " not in said and "CRITICAL" not in said, said


def test_the_task_of_a_killed_worker_runs_again(started: tuple[Project, str]) -> None:
    project, pool = started
    example = project.example
    before = example.begun(project.folder)
    with project.worker(pool) as (_, process, _), project.sending(["late", example.long, [30]]) as sent:
        until("it has begun", lambda: example.begun(project.folder) == before + 1, 30)
        kill(process)
        (task,) = sent()
    with project.worker(pool):
        if project.place.name == "redis":
            project.ask(["restore"])
        assert project.ask(["of", task]) == [30]
    assert example.begun(project.folder) == before + 2
