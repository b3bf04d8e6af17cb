"""`make dev`: changed code runs without a manual restart of the worker."""

import shutil

from celery import Celery

from celery_kit.base.target import ROOT
from tests.harness.waiting import until
from tests.operator.conftest import Machine


def test_a_new_and_a_changed_task_run_without_a_restart_by_hand(machine: Machine, app: Celery) -> None:
    folder = machine.folder / "code"
    for package in ("app", "celery_kit"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    dev = machine.start("celery_kit.operate.stacks.dev", "-c", "2", cwd=folder, POOL="threads")
    until("it consumes", dev.beat.exists, 60)
    task = folder / "app/tasks/new.py"

    def answer() -> object:
        try:
            return app.send_task("new.say").get(timeout=2)
        except Exception as error:  # not registered yet, or between two workers
            return error

    for word in ("first", "second"):
        task.write_text(f"from celery import shared_task\n\n\n@shared_task\ndef say() -> str:\n    return {word!r}\n")
        until(f"it says {word}", lambda word=word: answer() == word, 60)  # type: ignore[misc]
    assert dev.process.poll() is None
