"""How far ahead a worker takes messages, as settings and command line have it."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.worker import worker

from celery_kit.base.signals import celeryd_init
from celery_kit.engine import prefetch
from celery_kit.engine.prefetch import HORIZON, MOST, Throughput
from tests.unit.app.test_config import settings


def takes_ahead(**environ: str) -> bool:
    return bool(settings(None, **environ)["broker_transport_options"]["take_ahead"])


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_prefetch_count_of_the_users_holds_to_the_letter(broker: str) -> None:
    assert takes_ahead(BROKER=broker)
    assert not takes_ahead(BROKER=broker, WORKER_PREFETCH_MULTIPLIER="1")


@pytest.mark.parametrize(("broker", "ahead"), [("redis", True), ("rabbitmq", False)])
def test_what_counts_as_delivered_when_it_goes_back_is_not_taken_ahead_where_few_are_allowed(broker: str, ahead: bool) -> None:
    assert takes_ahead(BROKER=broker, MAX_DELIVERIES="3") == ahead


def after_start(options: dict[str, Any]) -> Any:
    """The broker's transport options of a worker that starts with these."""
    conf = SimpleNamespace(broker_transport_options={"take_ahead": True, "other": 1})
    with patch.object(celeryd_init, "receivers", []):
        prefetch.connect()
        celeryd_init.send(sender="worker", instance=None, conf=conf, options=options)
    return conf.broker_transport_options


@pytest.mark.parametrize("given", [{}, {"prefetch_multiplier": None}, {"prefetch_multiplier": 1}])
def test_one_that_a_worker_is_made_with_does_too(given: dict[str, Any]) -> None:
    assert after_start(given) == {"take_ahead": not given.get("prefetch_multiplier"), "other": 1}


@pytest.mark.parametrize(("argv", "environ", "ahead"), [
    ([], {}, True),
    (["--prefetch-multiplier", "4"], {}, False),
    ([], {"CELERY_WORKER_PREFETCH_MULTIPLIER": "2"}, False),
])  # fmt: skip
def test_one_of_the_command_line_does_too(
    argv: list[str], environ: dict[str, str], ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what Celery's command line fills in where the user said nothing does not count as the user's."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    obj = CLIContext(app=Celery(set_as_current=False), no_color=True, workdir=None, quiet=True)
    with worker.make_context("worker", argv, obj=obj, auto_envvar_prefix="CELERY_WORKER") as context:
        assert context.params["prefetch_multiplier"]
        assert after_start(context.params)["take_ahead"] == ahead


def test_a_burst_is_no_pace_and_slowness_counts_at_once() -> None:
    one = Throughput()
    now = one._since

    def after(done: int) -> int:
        nonlocal now
        for _ in range(done):
            one.done()
        now += HORIZON
        one.update(now)
        return one.ahead

    first, second = after(60), after(60)
    assert 0 < first < second <= 60
    assert after(100_000) == MOST
    assert after(3) <= 3
