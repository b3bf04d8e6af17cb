"""`make doctor` finds each fault, all of them real, and reports none if nothing is wrong."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from celery_kit.base.target import ROOT
from celery_kit.brokers.rabbitmq.facts import too_old
from celery_kit.brokers.redis.facts import faults
from tests.harness.waiting import until
from tests.operator.conftest import Machine, Process
from tests.operator.test_vitals import vitals


def doctor(machine: Machine, *before: str, cwd: Path = ROOT, **environ: str) -> tuple[int, list[str]]:
    """Its exit code, and the faults that it found. `before`: a command that starts it."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "celery_kit.operate.look.doctor"],
        cwd=cwd,
        env={**os.environ, **machine.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, [line.removeprefix("✗ ") for line in done.stdout.splitlines() if line.startswith("✗ ")]


@pytest.fixture
def healthy(machine: Machine) -> Process:
    """A worker, on a broker that persists its data."""
    Redis.from_url(machine.address).config_set("appendonly", "yes")
    return machine.worker("threads")


def test_nothing_is_found_where_nothing_is_wrong(machine: Machine, healthy: Process) -> None:
    assert doctor(machine) == (0, [])


def test_tasks_that_no_broker_takes_and_a_spool_that_is_not_ours_are_found(
    machine: Machine, healthy: Process, tmp_path: Path
) -> None:
    """The doctor names files that were preserved for inspection."""
    tmp_path.chmod(0o777)
    (tmp_path / "1.bad").touch()
    code, found = doctor(machine, SPOOL=str(tmp_path))
    assert code == 1
    assert found == [
        f"SPOOL={tmp_path} cannot be used: others may write to it (mode 0777): chmod go-w",
        f"1 tasks in SPOOL={tmp_path} could not be sent: 1.bad",
    ]


def test_each_line_says_what_mends_it(machine: Machine) -> None:
    Redis.from_url(machine.address).config_set("appendonly", "yes")
    done = subprocess.run(
        [sys.executable, "-m", "celery_kit.operate.look.doctor"],
        cwd=ROOT,
        env={**os.environ, **machine.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["✗ no worker answers: tasks wait", "  → make up, or python -m app.worker"]


def test_an_engine_that_does_not_answer(machine: Machine, healthy: Process) -> None:
    code, (line,) = doctor(machine, DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert code == 1 and line.startswith("no Docker engine answers (")


def test_an_engine_that_is_too_old(machine: Machine, healthy: Process) -> None:
    """The client and the engine use an older version of the API."""
    code, (line,) = doctor(machine, DOCKER_API_VERSION="1.40")
    assert code == 1 and line == "Docker's API is 1.40, the stacks need 1.44"


def test_a_package_that_is_not_the_locks(machine: Machine, healthy: Process, tmp_path: Path) -> None:
    """An older release of a package precedes the environment's own in the path."""
    pip = [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--target", str(tmp_path), "wcwidth==0.2.13"]
    subprocess.run(pip, check=True, capture_output=True)
    code, (line,) = doctor(machine, PYTHONPATH=str(tmp_path))
    assert code == 1 and line.startswith("wcwidth is 0.2.13 in ") and ", the lock says " in line


#: A mount namespace in which files can be mounted over the machine's. It ends with the doctor.
OWN_FILES = ("unshare", "--mount", *(() if os.getuid() == 0 else ("--map-root-user",)), "sh", "-ec")


def test_memory_that_a_server_may_not_take_when_it_forks(machine: Machine, healthy: Process, tmp_path: Path) -> None:
    """vm.overcommit_memory applies to the whole machine. Only this doctor sees another value."""
    (tmp_path / "policy").write_text("2\n")
    plant = f'mount --bind {tmp_path}/policy /proc/sys/vm/overcommit_memory; exec "$0" "$@"'
    code, (line,) = doctor(machine, *OWN_FILES, plant)
    assert code == 1 and line == "vm.overcommit_memory is 2: a server cannot fork to save its data"


def test_a_disk_that_is_nearly_full(machine: Machine, healthy: Process, tmp_path: Path) -> None:
    """The project is on a file system of 64 MB."""
    own = f"mount -t tmpfs -o size=64m none {tmp_path}; cp -r {ROOT}/app {ROOT}/celery_kit {tmp_path}; cd {tmp_path}"
    plant = own + '; exec "$0" "$@"'
    code, (line,) = doctor(machine, *OWN_FILES, plant)
    assert code == 1 and line.startswith("only ") and line.endswith(" MB of disk are free: brokers stop accepting tasks")


def test_servers_that_are_too_old() -> None:
    """Only the version that such a server reports is simulated: old servers are not available here."""
    info = {"redis_version": "6.2.14", "maxmemory_policy": "noeviction", "aof_enabled": 1, "used_memory": 1}
    assert [what for what, _ in faults(info, "broker")] == ["the broker is Redis 6.2.14, too old for redis-py"]
    assert not faults({**info, "redis_version": "7.2.4", "valkey_version": "8.1.0"}, "broker")
    assert [what for what, _ in too_old("3.13.7")] == ["the broker is RabbitMQ 3.13.7: its queues have no priorities"]
    assert not too_old("4.0.5")


def test_a_broker_that_does_not_answer(machine: Machine) -> None:
    code, lines = doctor(machine, CELERY_BROKER_URL="redis://127.0.0.1:1/0")
    assert code == 1 and len(lines) == 1 and lines[0].startswith("the broker does not answer: ") and "refused" in lines[0]


def test_an_account_that_the_broker_refuses(machine: Machine) -> None:
    client: Any = Redis.from_url(machine.address)
    client.execute_command("ACL", "SETUSER", "kit", "on", ">right", "~*", "&*", "+@all")
    try:
        address = machine.address.replace("redis://", "redis://kit:wrong@").replace(":@", "@")
        code, (line,) = doctor(machine, CELERY_BROKER_URL=f"{address}/0")
    finally:
        client.execute_command("ACL", "DELUSER", "kit")
    assert code == 1 and line.startswith("the broker refuses the account (")


def test_a_results_server_that_does_not_answer(machine: Machine, healthy: Process) -> None:
    code, (line,) = doctor(machine, CELERY_RESULT_BACKEND="redis://127.0.0.1:1/0")
    assert code == 1 and line.startswith("the results server does not answer: ")


def test_a_server_that_throws_keys_away_or_forgets_them(machine: Machine, healthy: Process) -> None:
    client = Redis.from_url(machine.address)
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("appendonly", "no")
    try:
        code, lines = doctor(machine)
    finally:
        client.config_set("maxmemory-policy", "noeviction")
    assert code == 1 and lines == [
        "the broker evicts keys when its memory is full (allkeys-lru)",
        "the broker writes no append-only file: a restart loses tasks",
        "the results server evicts keys when its memory is full (allkeys-lru)",
    ]


def test_a_worker_that_consumes_nothing(machine: Machine, app: Celery, healthy: Process) -> None:
    app.control.cancel_consumer("celery")
    until("it has stopped", lambda: vitals(app)["consuming"] == [], 20)
    code, (line,) = doctor(machine)
    assert code == 1 and line.endswith("lives and consumes nothing")


def test_a_queue_that_nobody_consumes(machine: Machine, app: Celery, healthy: Process) -> None:
    app.send_task("tests.operator.probes.say", queue="nowhere")
    code, (line,) = doctor(machine)
    assert code == 1 and line == "1 tasks wait in queue nowhere, which no worker consumes"


def test_a_clock_that_is_wrong(machine: Machine, healthy: Process) -> None:
    machine.worker("threads", "-I", "tests.operator.wrong_clock")
    code, (line,) = doctor(machine)
    assert code == 1 and line.startswith("the clock of worker w1@")


def test_a_second_beat(machine: Machine, healthy: Process) -> None:
    for number in ("one", "two"):
        beat = machine.start("celery", "-A", "app", "beat", DATA_DIR=str(machine.folder / number))
        until("beat beats", beat.beat.exists, 30)
    code, (line,) = doctor(machine)
    assert code == 1 and line == "2 beats run: each sends every scheduled task"
