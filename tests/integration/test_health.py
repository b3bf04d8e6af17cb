"""The probe of a worker's container, in the four hard cases: busy, frozen, without its broker, connected but not consuming."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import docker
from kombu.utils.uuid import uuid

from app.stack import image
from tests.integration.bench import LABEL, SESSION, Worker
from tests.integration.conftest import WAIT, Cell
from tests.integration.test_control import command
from tests.wait import until

#: The shortest that the kit allows, so that the tests need not wait for the half minute of a real stack.
SECONDS = 5

#: A way to the broker that a test can cut: forwards every connection, and ends them all when it is stopped.
LINK = """
import asyncio, sys
async def copy(source, target):
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    target.close()
async def forward(reader, writer):
    there = await asyncio.open_connection("broker", int(sys.argv[1]))
    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer), return_exceptions=True)
async def main():
    async with await asyncio.start_server(forward, "0.0.0.0", int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
"""


#: Seconds between two probes: each is a process in the container.
EVERY = 0.3


def healthy(worker: Worker, *words: str) -> bool:
    """What the image's own health check says; with "live", what a liveness probe asks."""
    command = ["docker", "exec", worker.docker.id, "healthy", *words]
    for _ in range(3):  # an engine that is asked very often forgets an answer now and then
        with suppress(subprocess.TimeoutExpired):
            return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    raise AssertionError("the engine does not answer")


@contextmanager
def probed(cell: Cell, **environ: str) -> Iterator[tuple[Worker, str]]:
    """A worker that consumes a queue of its own; healthy."""
    queue = f"health-{uuid()}"
    options = {"OPTIONS": f"-Q {queue} -c 1", "HEARTBEAT_SECONDS": str(SECONDS), **environ}
    with cell.running.beside("probed", **options) as worker:
        until("it is healthy", lambda: healthy(worker) and healthy(worker, "live"), WAIT, EVERY)
        yield worker, queue


@contextmanager
def link(cell: Cell, name: str) -> Iterator[Any]:
    """A container of that name in the stack's network, which forwards to the broker."""
    port = str(cell.running.server.port)
    network = f"{cell.running.stack.project}_default"
    container: Any = docker.from_env().containers.run(
        image(cell.combination.pool.name), ["python", "-c", LINK, port], detach=True, labels={LABEL: SESSION},
        name=name, hostname=name, network=network, healthcheck={"test": ["NONE"]}, init=True,
    )  # fmt: skip
    try:
        yield container
    finally:
        container.remove(force=True, v=True)


def test_probe_of_a_busy_worker(cell: Cell) -> None:
    """A worker is healthy during a task that takes longer than a sign of life may be old, whatever its loop does."""
    app = cell.running.app()  # of its own: see the limit `state_after_get`
    with probed(cell) as (worker, queue), app.connection_for_write():
        result = app.send_task("time_probes.nap", (3 * SECONDS,), queue=queue)
        until("it runs", lambda: result.state == "STARTED" or not cell.combination.backend.read_elsewhere, WAIT)
        seen = set()

        def ended() -> bool:
            seen.add((healthy(worker), healthy(worker, "live")))
            return bool(result.ready())

        until("the task ended", ended, WAIT, 1)
        assert seen == {(True, True)}
    app.close()


def test_probe_of_a_frozen_worker(cell: Cell) -> None:
    """A stopped worker is neither ready nor alive, at once; when it goes on it is healthy again."""
    with probed(cell) as (worker, _):
        worker.docker.kill(signal="STOP")
        until("the probe sees it", lambda: not healthy(worker) and not healthy(worker, "live"), SECONDS, EVERY)
        worker.docker.kill(signal="CONT")
        until("it is healthy again", lambda: healthy(worker) and healthy(worker, "live"), WAIT, EVERY)


def test_probe_of_a_worker_without_its_broker(cell: Cell) -> None:
    """A worker that lost its broker is not ready, but alive: to replace it would not help. With its broker it comes back."""
    name = f"link-{uuid()}"
    url = cell.running.server.url.format(host=name, port=cell.running.server.port, namespace=cell.running.namespace)
    with link(cell, name) as way, probed(cell, CELERY_BROKER_URL=url) as (worker, queue):
        way.kill()
        until("the probe sees it", lambda: not healthy(worker), WAIT, EVERY)
        assert healthy(worker, "live")
        way.start()
        assert cell.run("probes.add", 1, 2, queue=queue) == 3
        until("it is ready again", lambda: healthy(worker), WAIT, EVERY)


def test_probe_of_a_worker_that_does_not_consume(cell: Cell) -> None:
    """A worker that is connected and takes nothing of what waits is to be replaced; one for which nothing waits is healthy."""
    with probed(cell) as (worker, queue):
        node = f"probed@{worker.docker.short_id}"
        until("it hears", lambda: command(cell, node, "cancel_consumer", seconds=2, queue=queue), WAIT)
        assert healthy(worker)
        # The first may still answer a question that the worker had asked before.
        results = [cell.send("probes.add", 2, 2, queue=queue) for _ in range(2)]
        until("the probe sees it", lambda: not healthy(worker) and not healthy(worker, "live"), WAIT, EVERY)
        assert f"not healthy: messages wait, and for {SECONDS} s this worker took none" in worker.logs()
        command(cell, node, "add_consumer", queue=queue)
        assert [result.get(timeout=WAIT) for result in results] == [4, 4]
        until("it is healthy again", lambda: healthy(worker), WAIT, EVERY)
