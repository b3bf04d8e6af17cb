"""What needs no broker asks for none: on a fresh clone, without a stack, without a server."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from celery_kit.base.target import ROOT

#: What Celery's eager mode covers. Prints `right`.
EAGER = """
import sys, tempfile
from pathlib import Path
from celery import chain, chord, group, shared_task
from app import app
from celery_kit.files import inside
from celery_kit.once import once
from celery_kit.produce.send import send, send_many
from celery_kit.progress import report
if "set" in sys.argv:
    app.conf.task_always_eager = True

@shared_task
def add(x, y):
    return x + y

@shared_task
def total(numbers):
    return sum(numbers)

@shared_task(bind=True, max_retries=3, default_retry_delay=0)
def third_time(self):
    if self.request.retries < 2:
        raise self.retry()
    self.update_state(state="HALF")
    report(1, 2)
    return self.request.retries

@shared_task
def fails():
    raise ValueError("no")

@shared_task
@once
def single():
    return inside("made/here").parent.name

tried = 0
@shared_task(autoretry_for=(ValueError,), retry_backoff=True, max_retries=2)
def automatic():
    global tried
    tried += 1
    if tried < 2:
        raise ValueError
    return tried

assert add.delay(1, 2).get() == 3
assert add.apply_async((1, 2), countdown=60, queue="other", priority=5, link=add.s(1)).get(timeout=1) == 3
assert send(add.name, (1, 2)).get() == 3
assert group(add.s(n, n) for n in range(3)).delay().get() == [0, 2, 4]
assert chain(add.s(1, 2), add.s(3)).delay().get() == 6
assert (add.s(1, 2) | add.s(3)).apply_async().get() == 6
assert chord([add.s(1, 2), add.s(3, 4)], total.s()).delay().get() == 10
assert add.chunks(zip(range(4), range(4)), 2).delay().get() == [[0, 2], [4, 6]]
assert add.starmap([(1, 2), (3, 4)]).delay().get() == [3, 7]
assert third_time.delay().get() == 2
assert automatic.delay().get() == 2
assert single.delay().get() == "made"
failed = fails.delay()
assert failed.failed() and isinstance(failed.result, ValueError) and failed.state == "FAILURE"
assert len(send_many(add.name, [(1, 2), (3, 4)])) == 2
failed.forget()
print("right")
"""


class Clone:
    """A fresh clone: nothing is chosen, nothing runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for package in ("app", "celery_kit"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        ours = ("BROKER", "BACKEND", "POOL", "ENGINE", "CELERY", "TASK_", "SPOOL", "ONCE_")
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(ours)} | {"DATA_DIR": str(folder / "data")}

    def run(self, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
        environ = {**self.environ, **environ}
        return subprocess.run(
            [sys.executable, *argv], cwd=self.folder, env=environ, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return Clone(tmp_path_factory.mktemp("clone"))


@pytest.mark.parametrize("how", ["TASK_ALWAYS_EAGER", "set"])
@pytest.mark.parametrize("backend", ["redis", "rpc"])
@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_an_eager_task_asks_no_broker(clone: Clone, engine: str, backend: str, how: str) -> None:
    """By the variable, and by the setting of an app that is loaded, as a test of the user's own does it."""
    chosen = {"ENGINE": engine, "BACKEND": backend, **({how: "1"} if how.isupper() else {})}
    done = clone.run("-c", EAGER, how, **chosen)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ("-c", "import app"),
        ("-c", "from app.tasks import mail, media, reports, workflows"),
        ("-c", "from app import app; app.tasks; app.amqp.queues; app.conf.broker_url; app.backend"),
        ("-m", "celery", "-A", "app", "--help"),
        ("-m", "celery", "-A", "app", "report"),
        ("-m", "celery_kit.operate.look.send", "--help"),
        ("-m", "celery_kit.operate.cli", "--help"),
    ],
    ids=" ".join,
)
def test_what_only_looks_asks_no_broker(clone: Clone, argv: tuple[str, ...]) -> None:
    """Loading the app, its tasks and settings, help, a report."""
    done = clone.run(*argv)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ("-c", "import app; from celery_kit import send; send('mail.send_email', ('a@b.c', 'hi'))"),
        ("-c", "from app import app; app.send_task('mail.send_email')"),
        ("-c", "import app; from celery_kit import send_many; send_many('mail.send_email', [('a@b.c', 'hi')])"),
        ("-c", "from app import app; app.AsyncResult('1').get()"),
        ("-c", "from app import app; app.AsyncResult('1').state"),
        ("-c", "from app import app; app.control.ping()"),
        ("-m", "celery_kit.operate.look.send", "mail.send_email", '["a@b.c", "hi"]'),
        ("-m", "celery_kit.operate.look.dead"),
        ("-m", "app.worker"),
        ("-m", "app.worker", "--pool", "gevent"),
        ("-m", "celery", "-A", "app", "worker", "--pool", "solo"),
        ("-m", "celery", "-A", "app", "worker", "--pool", "threads"),
        ("-m", "celery", "-A", "app", "beat"),
        ("-m", "celery", "-A", "app", "status"),
    ],
    ids=" ".join,
)
def test_what_needs_one_says_in_one_line_that_there_is_none(clone: Clone, argv: tuple[str, ...]) -> None:
    done = clone.run(*argv)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "celery-kit: the embedded broker does not run: start it with 'make up', or name another with BROKER= or " in line
