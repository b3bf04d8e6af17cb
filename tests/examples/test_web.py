"""The two sites' producers, in a web server of threads or of an event loop, and in one that forks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.examples.rig import Project
from tests.examples.table import EXAMPLES, SERVED, WEB
from tests.examples.test_examples import Places
from tests.harness.waiting import until

#: In seconds: the first test installs what all of the examples need, from an index that may be slow.
pytestmark = pytest.mark.timeout(900)


def answer(address: str, method: str = "get", **options: Any) -> Any:
    found = requests.request(method, address, timeout=30, **options)
    assert found.ok, f"{found.status_code}: {found.text[:2000]}"
    return found.json()


def orders(project: Project, address: str) -> None:
    """Each is paid, and has its receipt: both are sent once its transaction is committed. Results that django-celery-results
    keeps in the site's database are read there as Celery reads them.
    """
    placed = [answer(f"{address}/orders/", "post", json={"cents": 100})["number"] for _ in range(8)]
    for number in placed:
        until("it is paid, and its receipt sent", partial(_settled, address, number), 30)
    (task,) = project.ask(["late", "orders.tasks.price", [7]])
    assert project.ask(["of", task]) == [700]
    assert answer(f"{address}/tasks/{task}/") == {"state": "SUCCESS", "in the database": "SUCCESS"}


def _settled(address: str, number: int) -> bool:
    order = answer(f"{address}/orders/{number}/")
    return order["state"] == "paid" and bool(order["receipt"])


def thumbnails(_: Project, address: str) -> None:
    ids = [answer(f"{address}/thumbnails?url={n}.png", "post")["id"] for n in range(8)]
    for n, task in enumerate(ids):
        made = until("it is made", partial(_made, address, task), 30)
        assert made == {"url": f"{n}.png", "size": "128x128"}


def _made(address: str, task: str) -> Any:
    return answer(f"{address}/thumbnails/{task}")["result"]


VISITS: dict[str, Callable[[Project, str], None]] = {"django_site": orders, "fastapi_site": thumbnails}


@pytest.mark.parametrize("name, broker, pool, server", SERVED, ids=["-".join(one) for one in SERVED])
def test_a_web_server_sends_and_reads_results(
    name: str, broker: str, pool: str, server: str, places: Places, python: Path, tmp_path: Path
) -> None:
    project = Project.of(EXAMPLES[name], tmp_path / name, python, places(broker))
    with project.worker(pool), project.web(*WEB[name][server]) as address:
        VISITS[name](project, address)
