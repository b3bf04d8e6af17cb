"""How fast a producer is, beside plain Celery: `python -m bench.publish`, on the broker at CELERY_BROKER_URL.

Plain Celery is an app with the same broker, results server, queue type and confirms, and none of the kit's code. Each figure is
the median of interleaved rounds, each round a process of its own; ratios count, not rates. Writes a table in Markdown.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

QUEUE = "bench.publish"


def _plain() -> Any:
    from celery import Celery
    from kombu.transport import TRANSPORT_ALIASES

    kombus = dict(TRANSPORT_ALIASES)
    from app import config  # its package puts the kit's transports in the place of kombu's

    TRANSPORT_ALIASES.update(kombus)
    app = Celery("plain", broker=config.broker_url, backend=config.result_backend, set_as_current=False)
    same = ("task_default_queue_type", "task_default_exchange_type")
    app.conf.update({name: getattr(config, name) for name in same if hasattr(config, name)})
    if confirm := vars(config)["broker_transport_options"].get("confirm_publish"):
        app.conf.broker_transport_options = {"confirm_publish": confirm}
    return app


def _kit() -> Any:
    from app import app

    return app


def measure(what: str, number: int) -> dict[str, float]:
    """Send `number` tasks in the manner `what`; gives tasks/s and the process's CPU in microseconds a task."""
    app = (_plain if what == "plain delay" else _kit)()
    app.conf.task_default_queue = QUEUE

    @app.task(name="bench.add")  # type: ignore[untyped-decorator,unused-ignore]
    def add(x: int, y: int) -> int:
        return x + y

    for warm in range(20):
        add.delay(warm, warm)
    wall, cpu = time.perf_counter(), time.process_time()
    if what == "kit send_many":
        from app.producer import send_many

        send_many("bench.add", [(n, n) for n in range(number)])
    else:
        for n in range(number):
            add.delay(n, n)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        channel.queue_purge(QUEUE)
        channel.queue_delete(QUEUE)
    return {"rate": number / wall, "cpu": cpu / number * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description="A producer's rates, beside plain Celery's.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--number", type=int, default=2_000, help="tasks a round; send_many sends ten times as many")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.number)))
        return

    ways = {"plain delay": 1, "kit delay": 1, "kit send_many": 10}
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(given.rounds):
        for way, times in ways.items():
            command = [sys.executable, "-m", "bench.publish", "--one", way, "--number", str(given.number * times)]
            runs[way].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    medians = {way: {key: statistics.median(run[key] for run in each) for key in ("rate", "cpu")} for way, each in runs.items()}
    plain = medians["plain delay"]
    print(f"| {os.environ['CELERY_BROKER_URL'].partition(':')[0]} | tasks/s | x plain | CPU us a task | x plain |")
    print("| --- | --- | --- | --- | --- |")
    for way, found in medians.items():
        by_rate, by_cpu = found["rate"] / plain["rate"], plain["cpu"] / found["cpu"]
        print(f"| {way} | {found['rate']:,.0f} | {by_rate:.1f} | {found['cpu']:.0f} | {by_cpu:.1f} |")
    packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "redis", "amqp"))
    print(
        f"\nMedians of {given.rounds} interleaved rounds of {given.number:,} tasks (send_many: ten times as many), confirmed; "
    )
    print(f"{datetime.now(UTC):%Y-%m-%d}, python {platform.python_version()}, {packages}, {os.cpu_count()} cores.")


if __name__ == "__main__":
    main()
