"""What each of examples/ is asked for, and where."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from testbed.servers import SERVERS
from tests.examples.rig import Example


def lines(file: str) -> Callable[[Path], int]:
    """How many lines of a file say that something started."""
    return lambda folder: (folder / file).read_text().count(" started\n") if (folder / file).exists() else 0


def runs(folder: Path) -> int:
    """How many rows the long job left in the site's database."""
    with closing(sqlite3.connect(folder / "db.sqlite3", timeout=30)) as database:
        return int(database.execute("select count(*) from orders_run").fetchone()[0])


EXAMPLES = {
    "shop": Example(
        "shop", "shop.celery", "shop,payments,reports", ("prefork", "gevent"),
        {
            "task": (["payments.charge", [7, 250]], {"order": 7, "charged": 250}),
            "failure": (["payments.charge", [7, 0]], "ValueError"),
            "retry": (["shop.tasks.reserve", [7]], "order 7 reserved at try 3"),
            "chord": (["reports.price", [[1], [2], [3]], "reports.revenue"], 600),
        },
        "shop.tasks.rebuild_catalogue", lines("ledger.txt"),
    ),
    "django_site": Example(
        "django_site", "webshop", "celery", ("prefork", "threads"),
        {
            "task": (["orders.tasks.price", [7]], 700),
            "failure": (["orders.tasks.refund", [7]], "DoesNotExist"),
            "retry": (["orders.tasks.ship", [7]], "order 7 shipped at try 3"),
            "chord": (["orders.tasks.price", [[1], [2], [3]], "orders.tasks.revenue"], 600),
        },
        "orders.tasks.export", runs, results="django-db",
    ),
    "fastapi_site": Example(
        "fastapi_site", "thumbs.jobs", "celery", ("prefork", "threads"),
        {
            "task": (["thumbs.jobs.make", ["a.png", 64]], {"url": "a.png", "size": "64x64"}),
            "failure": (["thumbs.jobs.crop", ["a.txt"]], "ValueError"),
            "retry": (["thumbs.jobs.fetch", ["a.png"]], "a.png fetched at try 3"),
            "chord": (["thumbs.jobs.make", [["a.png", 1], ["b.png", 2]], "thumbs.jobs.count"], 2),
        },
        "thumbs.jobs.convert", lines("thumbs.log"),
    ),
}  # fmt: skip
EVERY = [(name, broker, pool) for name, one in EXAMPLES.items() for broker in SERVERS for pool in one.pools]
#: Each example, each broker and each of the pools once.
QUICK = [("shop", "rabbitmq", "gevent"), ("django_site", "redis", "prefork"), ("fastapi_site", "redis", "threads")]
CHOSEN = [
    one
    for one in (QUICK if os.environ.get("QUICK") else EVERY)
    if one[1] in (os.environ.get("BROKER") or one[1]).split(",") and one[2] in (os.environ.get("POOL") or one[2]).split(",")
]

#: By site, the commands of web servers: one of threads or a loop, and one that forks once the app is loaded.
WEB = {
    "django_site": {
        "threads": ("gunicorn", "--threads", "4", "webshop.wsgi", "--bind", "127.0.0.1:{port}"),
        "forks": ("gunicorn", "--preload", "--workers", "2", "webshop.wsgi", "--bind", "127.0.0.1:{port}"),
    },
    "fastapi_site": {
        "loop": ("uvicorn", "thumbs.web:app", "--port", "{port}"),
        "forks": (
            "gunicorn", "--preload", "--workers", "2", "--worker-class", "uvicorn_worker.UvicornWorker", "thumbs.web:app",
            "--bind", "127.0.0.1:{port}",
        ),
    },
}  # fmt: skip
#: Each site, on each broker, and its servers; QUICK=1 takes the one that forks.
SERVED: list[tuple[str, str, str, str]] = [
    (*site, server)
    for site in CHOSEN
    for server in WEB.get(site[0], ())
    if (server == "forks" if os.environ.get("QUICK") else site[2] == "threads")
]
