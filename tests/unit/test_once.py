"""What `@once` does without a server: keys, refusals, and whose claim has died."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from celery import Celery

from celery_kit import once as module
from celery_kit.base.processes import identity
from celery_kit.base.signals import worker_init
from celery_kit.base.target import ROOT
from celery_kit.once import once
from celery_kit.profile import Profile


@pytest.fixture(autouse=True)
def no_worker_needs_a_store() -> Iterator[None]:
    """`@once` in this process would have every worker of later tests refused that has no store."""
    yield
    worker_init.disconnect(module._refuse_without_store)


def test_a_function_called_directly_simply_runs() -> None:
    @once
    def double(x: int) -> int:
        return 2 * x

    assert double(4) == 8


def test_a_call_with_the_wrong_arguments_is_still_refused_by_its_sender() -> None:
    app = Celery(set_as_current=False, broker="memory://")

    @app.task(shared=False)
    @once
    def double(x: int) -> int:
        return 2 * x

    with pytest.raises(TypeError, match="x"):
        double.delay()


def test_an_unknown_word_as_key_is_refused() -> None:
    with pytest.raises(ValueError, match="key='args' is not known; allowed: arguments, message, or a function"):
        once(key="args")


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "redis://results:6379/1"),
        ({"BACKEND": "rpc"}, None),
        ({"BACKEND": "rpc", "ONCE_URL": "redis://elsewhere/3"}, "redis://elsewhere/3"),
        ({"CELERY_RESULT_BACKEND": "rediss://theirs:6380/2"}, "rediss://theirs:6380/2"),
        ({"CELERY_RESULT_BACKEND": "redis+socket:///run/redis.sock"}, "redis+socket:///run/redis.sock"),
        ({"CELERY_RESULT_BACKEND": "file:///var/results"}, None),
    ],
)
def test_the_claims_are_in_the_results_server_or_in_a_store_of_their_own(
    environ: dict[str, str], url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = Profile.from_environ({"BROKER": "rabbitmq", **environ})
    app = Celery("once", set_as_current=False, backend=profile.result_backend)
    monkeypatch.setenv("ONCE_URL", environ.get("ONCE_URL", ""))
    backend, found = module._where(app)
    assert (found if backend and backend.claims else None) == url


def test_a_store_that_cannot_hold_claims_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        Profile.from_environ({"BROKER": "rabbitmq", "ONCE_URL": "amqp://broker"})
    assert capsys.readouterr().err == "celery-kit: the scheme of ONCE_URL=amqp is not known; allowed: redis, rediss, sentinel\n"


def test_a_worker_without_a_store_is_refused_at_its_start() -> None:
    code = "from app import app\nfrom celery_kit.once import once\n\n@app.task\n@once\ndef f(): ...\napp.Worker(pool='solo')"
    environ = {**os.environ, "BROKER": "rabbitmq", "BACKEND": "rpc", "ONCE_URL": "", "CELERY_BROKER_URL": "amqp://nobody"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"celery-kit: {module.NO_STORE}; BACKEND=rpc has none"


def claim_of(process: list[str | None], run: str = "another") -> module.Claim:
    return {"run": run, "task": "an id", "process": process}


def test_the_claim_of_a_process_that_ended_is_dead_and_that_of_one_that_lives_is_not() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        its = identity(child.pid)
        assert not module._is_dead(claim_of(its))
        child.kill()
        child.wait()
        assert module._is_dead(claim_of(its))


def test_a_process_of_the_same_number_that_started_later_is_another() -> None:
    machine, number, started = identity(os.getppid())
    assert started and module._is_dead(claim_of([machine, number, str(int(started) - 1)]))


def test_of_a_process_on_another_machine_nothing_is_known() -> None:
    assert not module._is_dead(claim_of(["elsewhere", "1", "1"]))


def test_a_claim_of_this_process_is_dead_unless_its_run_goes_on() -> None:
    mine = identity(os.getpid())
    assert module._is_dead(claim_of(mine))
    module.keeper.runs["mine"] = object()  # type: ignore[assignment]
    assert not module._is_dead(claim_of(mine, "mine"))
    del module.keeper.runs["mine"]
