"""ENGINE=fast takes the rooms' classes; ENGINE=plain leaves Celery's and kombu's where they are."""

import os
import subprocess
import sys

import pytest

from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS

#: In a process of its own: which classes serve a scheme is known to a whole process.
LOOK = """
from app import app
for found in (app.connection().get_transport_cls(), type(app.backend)):
    print(found.__module__ + "." + found.__name__)
print(app.conf.worker_prefetch_multiplier)
"""


def look(engine: str, scheme: str, pool: str = "solo") -> list[str]:
    given = {"ENGINE": engine, "POOL": pool, "BROKER": "", "BACKEND": "", "CELERY_BROKER_URL": f"{scheme}://127.0.0.1:1//"}
    environ = {**os.environ, **given, "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/0"}
    return subprocess.run(
        [sys.executable, "-c", LOOK], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    ).stdout.split()


RABBITMQ = "celery_kit.brokers.rabbitmq.transport"


@pytest.mark.parametrize(
    ("engine", "scheme", "found"),
    [
        ("fast", "amqp", [f"{RABBITMQ}.Transport", "celery_kit.results.redis.store.Backend", "4"]),
        ("fast", "pyamqp", [f"{RABBITMQ}.Transport", "celery_kit.results.redis.store.Backend", "4"]),
        ("fast", "amqps", [f"{RABBITMQ}.SecureTransport", "celery_kit.results.redis.store.Backend", "4"]),
        ("fast", "redis", ["celery_kit.brokers.redis.transport.Transport", "celery_kit.results.redis.store.Backend", "4"]),
        ("plain", "amqp", [f"{RABBITMQ}.Transport", "celery.backends.redis.RedisBackend", "1"]),
        ("plain", "amqps", [f"{RABBITMQ}.SecureTransport", "celery.backends.redis.RedisBackend", "1"]),
    ],
)
def test_the_engine_chooses_the_classes(engine: str, scheme: str, found: list[str]) -> None:
    assert look(engine, scheme) == found


STACKS = """
import sys
sys.orig_argv[:] = ["python", "-m", "app.worker", "--pool", sys.argv[1]]
import app
import celery
from celery.utils.threads import LocalStack
print(LocalStack.__name__, celery._original_os_write.__module__)
"""


@pytest.mark.parametrize(("pool", "quick"), [(pool, pool in ("solo", "prefork")) for pool in POOLS])
def test_a_worker_has_what_celery_keeps_of_before_the_patch_and_quick_stacks_where_they_are_right(
    pool: str, quick: bool
) -> None:
    """Those where a task runs in the thread that made its trace; and os.write, which a signal's handler needs as it was."""
    look = [sys.executable, "-W", "ignore", "-c", STACKS, pool]
    said = subprocess.run(look, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert said.split() == ["_FastLocalStack" if quick else "_LocalStack", "posix"]
