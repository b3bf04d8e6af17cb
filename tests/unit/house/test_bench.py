"""The benchmark's report: ratios of rounds beside each other, and nothing of a trial that failed."""

import re
import subprocess
import sys
from typing import Any

import pytest

from bench import report
from bench.__main__ import Plan, parts
from bench.contenders import DEPLOYED, FAST, OTHERWISE, SETTINGS
from bench.idle import FIRST, Side
from bench.parts import FILES, ROWS, without
from bench.rounds import Case, NothingDoneError, environment, used
from celery_kit.base.target import ROOT
from celery_kit.engine.parts import PARTS
from celery_kit.pools.table import POOLS
from docs.take_bench import merged
from testbed import deployed
from testbed.places import Place

#: The benchmark's servers have addresses of their own.
CELERYS_URLS = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")


def trial(name: str, rates: list[float], error: str = "", **case: Any) -> dict[str, Any]:
    its = {"broker": "redis", "pool": "solo", "work": "noop", "size": 100, "depth": 0, "workers": 1, **case}
    rounds = [{"rate": rate, "cpu": 1e6 / rate, "trips": 5.0, "memory": 5e7, "first": 0.5, "tasks": 100} for rate in rates]
    return {"section": "pools", "name": name, "case": its, "rounds": rounds, "error": error}


def found(*trials: dict[str, Any]) -> dict[str, Any]:
    about = {
        "when": "2026-01-02T03:04:05+00:00", "command": "make bench", "cores": 2, "python": "3.13",
        "packages": {"celery": "5.7"}, "servers": ["Redis 8"], "rounds": 3, "seconds": 4,
    }  # fmt: skip
    return {"about": about, "trials": list(trials)}


def test_the_kits_workers_run_as_in_a_container() -> None:
    """Whatever the image and the stack set is set in the benchmark, with the same value but for files and addresses."""
    stack: Any = None
    place = Place("redis://broker", "redis://results", None, None, dict, stack)
    for one in (FAST, SETTINGS, *OTHERWISE):
        found = environment(one, place, Case("redis", "solo"))
        assert found["CELERY_BROKER_URL"] == "redis://broker"
        for name, value in (deployed.of_the_image() | deployed.of_the_stack()).items():
            if name not in deployed.ELSEWHERE:
                assert name in found, f"{name} is set in a container, and not in {one.name}"
                assert found[name] == value or name in {"DATA_DIR", "HEARTBEAT_FILE", *one.settings, *CELERYS_URLS}, name
        assert "INFO" in one.worker("solo", 0)
    image = re.findall(r"([A-Z_]+)=", "".join(re.findall(r"^ENV .*", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)))
    assert set(image) - set(deployed.of_the_image()) == {"PYTHONPATH", "APP", "CELERY_APP"}, "those of another codebase"
    stack = deployed.of_the_stack()
    assert (stack["LOGLEVEL"], stack["LOG_FORMAT"], stack["TASK_TIME_LIMIT"], stack["CELERY_WORKER_QUEUES"]) == (
        "INFO", "json", "300", "",
    )  # fmt: skip


def test_ratio_is_of_rounds_beside_each_other() -> None:
    """A machine that gets slower from round to round changes the rates, not the ratio."""
    text = report.markdown(found(trial("plain Celery", [100, 50, 10]), trial("celery-kit fast", [400, 200, 40])))
    assert "| 50 |" in text and "**4 (4-4)**" in text


def test_failed_trial_is_named() -> None:
    """What did not work is in the report, and in no table."""
    text = report.markdown(found(trial("plain Celery", [100]), trial("celery-kit fast", [], "no result within 60 s")))
    assert "celery-kit fast: no result within 60 s" in text and "One worker of each pool" not in text


def test_compared_with_an_earlier_run() -> None:
    now = found(trial("plain Celery", [100]), trial("celery-kit fast", [300]))
    then = found(trial("plain Celery", [200]), trial("celery-kit fast", [1200]))
    assert "| redis | solo | 6 | 3 | 0.50 |" in report.markdown(now, then)


def test_a_choice_is_set_beside_the_worker_as_it_is() -> None:
    """One column for each broker and pool; a pool where it was not measured has an empty cell."""
    as_it_is, otherwise = trial("celery-kit fast", [100, 100]), trial("LOGLEVEL=INFO", [50, 60])
    other_pool = trial("celery-kit fast", [30], pool="prefork")
    for one in (as_it_is, otherwise, other_pool):
        one["section"] = "choices"
    text = report.choices(found(as_it_is, otherwise, other_pool))
    assert "| as it is, tasks/s | 100 | 30 |" in text and "| `LOGLEVEL=INFO` | 0.55 (0.5-0.6) |  |" in text


def test_what_runs_in_containers_stands_beside_the_same_on_the_host() -> None:
    names = ("plain Celery", "celery-kit fast", "LOGLEVEL=WARNING", "MONITOR=1", "on the host")
    trials = [{**trial(name, [rate]), "section": "deployed"} for name, rate in zip(names, (10, 80, 100, 60, 88), strict=True)]
    assert [one.name for one in DEPLOYED] == list(names)
    assert "| redis | solo | 10 | 80 | **8** | 0.8 | 0.75 | 1.1 |" in report.deployed(found(*trials))


def test_docs_keep_the_sections_that_a_later_run_has_not_measured() -> None:
    """Each table says which run it is of."""
    first, later = found(trial("plain Celery", [100]), trial("celery-kit fast", [300])), found(trial("kit delay", [9]))
    later["about"]["command"] = "make bench ONLY=publish"
    first["trials"].append({**trial("kit delay", [5]), "section": "publish"})
    later["trials"][0]["section"] = "publish"
    data = merged(first, later)
    rates = {(one["section"], one["name"]): one["rounds"][0]["rate"] for one in data["trials"]}
    assert rates["publish", "kit delay"] == 9 and rates["pools", "celery-kit fast"] == 300
    assert report.made_by(data, "pools").startswith("`make bench`,")
    assert report.made_by(data, "publish").startswith("`make bench ONLY=publish`,")
    assert report.made_by(merged(data, found(trial("plain Celery", [1]))), "publish") == report.made_by(data, "publish")
    text = report.markdown(data)
    assert "Run 1.\n\n## Publishing" in text and "Run 2.\n\n## Runs\n\n1. `make bench`, " in text
    assert text.count("\n2. `make bench ONLY=publish`, ") == 1


def test_what_plain_celery_is_ahead_in_is_said() -> None:
    run = found(trial("plain Celery", [100]), trial("celery-kit plain", [50]), trial("celery-kit fast", [300]))
    figures = {"p50": 2.0, "p99": 5.0, "cpu": 0.2, "memory": 5e7, "first": 1.5}
    for name, later in (("plain Celery", 0.0), ("celery-kit fast", 1.0)):
        idle = figures | {"p99": 5.0 + later, "p50": 2.04 - later}
        run["trials"].append({**trial(name, []), "section": "idle", "rounds": [idle]})
    _, _, *rows = report.slower(run).splitlines()
    assert "| 2.0 / 1.0: 0.51 | 5.0 / 6.0: 1.2 | " in report.idle(run)
    assert [row.split(" | ")[2:] for row in rows] == [
        ["celery-kit plain: noop, tasks/s", "100", "50", "0.5 |"],
        ["celery-kit fast: send to result, p99 ms", "5.0", "6.0", "1.2 |"],
    ]


#: A client's likeness: says of each task which one of its turn it was; what it cannot read is the end of it.
ASKED = """
import sys

for line in sys.stdin:
    print(list(range(int(line))) if int(line) < 100 else sys.exit("no worker"), flush=True)
"""


def test_first_answers_of_a_turn_are_not_counted() -> None:
    """Turn after turn; a client that ends says why."""
    argv, pipe = [sys.executable, "-c", ASKED], subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as client:
        side = Side([], client, 0.3)
        for number in (2, 1):
            side.turn(number)
        assert side.times == [FIRST, FIRST + 1, FIRST]
        with pytest.raises(NothingDoneError, match="no worker"):
            side.turn(100)


#: A worker's likeness: most of its processor time is a thread's that has ended, or a child's. Each process prints its own.
BUSY = """
import os, sys, threading, time

def busy(clock, seconds):
    while clock() < seconds:
        pass

thread = threading.Thread(target=busy, args=(time.thread_time, 0.03))
thread.start()
thread.join()
child = os.fork()
if not child:
    busy(time.process_time, 0.02)
print(time.process_time(), flush=True)
sys.stdin.readline()
if child:
    os.wait()
"""


def test_processor_time_is_exact_and_that_of_all_threads_and_children() -> None:
    """An idle worker takes ten seconds for one tick of /proc/PID/stat."""
    argv = [sys.executable, "-c", BUSY]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout
        said = [float(process.stdout.readline()) for _ in range(2)]
        cpu, memory = used([process.pid])
        process.communicate("\n")
    assert min(said) >= 0.02 and max(said) >= 0.03
    assert sum(said) <= cpu, "ticks are rounded down"
    assert memory > 1_000_000


def test_a_part_is_set_beside_the_whole_engine_of_its_own_round() -> None:
    """A machine that gets slower from round to round changes neither ratio."""
    rounds = [{"rate": 80 / n, "cpu": 12 * n, "whole_rate": 100 / n, "whole_cpu": 10 * n} for n in (1, 2, 5)]
    run = found({**trial("trace", []), "section": "parts", "rounds": rounds})
    run["about"]["lines"] = 1_234
    text = report.markdown(run)
    assert "| redis solo |" in text and "`trace`: a shorter trace of a task that succeeds | 0.8 (0.8-0.8); 1.2 |" in text
    assert "1,234 lines" in text


def test_every_part_is_measured_somewhere_and_has_a_way_to_be_left_out() -> None:
    plan = Plan(["redis", "rabbitmq"], list(POOLS), 1, 1, quick=True)
    measured = {trial.name for trial in parts(plan)}
    assert measured == ROWS.keys() >= PARTS.keys()
    assert all(without(part) for part in ROWS.values())


def test_the_lines_of_the_fast_path_are_counted_in_files_that_are_there() -> None:
    """A file that is moved must not leave the count by that."""
    assert not [pattern for pattern in FILES if not list((ROOT / "celery_kit").glob(pattern))]
