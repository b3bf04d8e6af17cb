"""Two apps in one process, a plain one and the kit's, and workers of both on one server."""

from typing import Any
from uuid import uuid4

import pytest

from celery_kit.pools.table import POOLS
from tests.compat.conftest import PAIRS
from tests.compat.rig import KIT, SIDES, Place, Side, kits, outcomes
from tests.harness.workers import PLAIN_CELERY

EACH = [n + 1 for n in range(11)]


#: On RabbitMQ the two declare the same queue with different arguments, which is an error 406: docs/migration.md.
ON_REDIS = pytest.mark.parametrize("sides", [pair for pair in PAIRS if pair[0] == "redis"], ids="+".join, indirect=True)


def test_a_plain_app_beside_the_kits_sends_what_plain_workers_see(sides: dict[str, Side]) -> None:
    """The kit's classes are used only by the kit's app. Another app of the process is plain Celery, on its own queues."""
    assert outcomes(sides, "apps:plain_beside", sides[PLAIN_CELERY].queue) == dict.fromkeys(SIDES, EACH)


@ON_REDIS
def test_each_side_sees_each_priority_that_the_other_writes(sides: dict[str, Side]) -> None:
    """No message is written to a key that a worker of the other kind does not read."""
    assert outcomes(kits(sides), "apps:each_to", sides[PLAIN_CELERY].queue) == dict.fromkeys(KIT, EACH)
    for name in KIT:
        assert sides[PLAIN_CELERY].client("apps:each_to", sides[name].queue) == EACH


def test_a_shared_task_is_the_apps_from_any_thread(sides: dict[str, Side]) -> None:
    """With plain Celery that works if the user makes its app the default one, as the plain side does."""
    found: dict[str, Any] = outcomes(sides, "apps:shared_from_a_thread")
    assert found == {side: ["sent"] for side in SIDES}


#: Settings in the environment that the app does not have. The servers are in the app's own settings.
OTHERWISE = {"redis": {"BROKER": "rabbitmq", "BACKEND": "rpc"}, "rabbitmq": {"BROKER": "embedded", "BACKEND": "rpc"}}
ASK = """
import os
from tests.compat.alone import add, app
print([add.delay(n, 1).get(timeout=40) for n in range(3)])
inspect = app.control.inspect([os.environ["NODE"]], timeout=10)
print([(one["consuming"], one["pool"]) for one in inspect._request("vitals").values()])
"""


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_an_app_by_its_arguments_alone_has_a_whole_kits_worker(place: Place, pool: str) -> None:
    """Bootsteps, transports, engine, queues and settings come with the app, independent of the environment's profile."""
    side = Side("fast", place)
    mine = {"SHOP_BROKER": place.broker, "SHOP_RESULTS": place.results, "CELERY_BROKER_URL": "", "CELERY_RESULT_BACKEND": ""}
    mine |= OTHERWISE[place.name] | {"NODE": f"{uuid4().hex[:6]}@alone"}
    argv = [
        "-m",
        "celery",
        "-A",
        "tests.compat.alone",
        "worker",
        "-P",
        pool,
        "-c",
        "2",
        "-l",
        "INFO",
        *POOLS[pool].worker_flags,
    ]
    with side.python(*argv, "-n", mine["NODE"], **mine) as worker:
        try:
            with side.python("-c", ASK, **mine) as client:
                said, errors = client.communicate(timeout=60)
        finally:
            worker.terminate()
            log = "".join(worker.communicate(timeout=60))
    assert said.splitlines() == ["[1, 2, 3]", f"[(['{side.queue}'], '{pool}')]"], errors + log
    assert worker.returncode == 0 and "CRITICAL" not in log and "ERROR" not in log, log
