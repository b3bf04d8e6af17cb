"""`make up MONITOR=1`: Flower in a real browser, metrics of tasks that ran, an alert that fires because the workers stopped."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from app.pools import POOLS
from app.stack import ROOT
from tests.browser.conftest import browser  # noqa: F401  # a fixture
from tests.deploy.conftest import Checkout
from tests.deploy.test_status import compose
from tests.wait import until

PAIRS = [("rabbitmq", "prefork"), ("redis", "gevent")]


def ask(checkout: Checkout, path: str, **query: str) -> Any:
    """Prometheus' HTTP API."""
    url = f"http://127.0.0.1:{checkout.environ['PROMETHEUS_PORT']}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)["data"]


def value(checkout: Checkout, query: str) -> float:
    """The sum of a query's samples; 0 where there are none."""
    return sum(float(sample["value"][1]) for sample in ask(checkout, "query", query=query)["result"])


@pytest.mark.parametrize(("broker", "pool"), PAIRS)
def test_flower_metrics_and_an_alert_in_life(
    checkout: Checkout,
    browser: Browser,  # noqa: F811
    broker: str,
    pool: str,
) -> None:
    up = checkout.make("up", f"BROKER={broker}", f"POOL={pool}", "MONITOR=1")
    assert up.returncode == 0
    flower = f"http://127.0.0.1:{checkout.environ['FLOWER_PORT']}"
    password = (checkout.folder / ".kit/monitor/password").read_text()
    assert password not in up.stdout + up.stderr

    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{flower}/workers", timeout=5)

    page = browser.new_context(http_credentials={"username": "kit", "password": password}).new_page()

    def shows(path: str, words: str) -> bool:
        page.goto(f"{flower}/{path}")
        return bool(re.search(words, page.locator("body").inner_text()))

    until("Flower shows the worker", lambda: shows("workers", r"celery@[0-9a-f]{12}\s+Online"), 60)
    done = checkout.make("send", "TASK=mail.send_email", 'ARGS=["a@b.c", "hi"]', "WAIT=30").stdout.split()[0]
    failed = checkout.make("send", "TASK=media.waveform", 'ARGS=["none.wav"]', "WAIT=30").stdout.split()[0]
    until("Flower shows the success", lambda: shows(f"task/{done}", "SUCCESS"), 30)
    until("Flower shows the failure, and why", lambda: shows(f"task/{failed}", r"FAILURE[\s\S]*FileNotFoundError"), 30)
    until("Flower lists it", lambda: shows("tasks", "mail.send_email"), 30)
    if folder := checkout.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"flower-{broker}-{pool}.png"))

    until(
        "the run is counted",
        lambda: value(checkout, 'flower_events_total{type="task-succeeded",task="mail.send_email"}') == 1,
        60,
    )
    until(
        "the failure is counted",
        lambda: value(checkout, 'flower_events_total{type="task-failed",task="media.waveform"}') == 1,
        60,
    )
    until("the worker is counted", lambda: value(checkout, "celery_kit_workers") == 1, 60)
    assert value(checkout, f'celery_kit_worker_processed{{pool="{POOLS[pool].module}"}}') == 2
    until("beat's rounds are seen", lambda: 0 < value(checkout, "celery_kit_beat_silent_seconds") < 60, 60)
    served = set(ask(checkout, "label/__name__/values"))
    assert named_on_the_dashboard() <= served, "the dashboard shows metrics that nobody serves"
    assert {target["health"] for target in ask(checkout, "targets")["activeTargets"]} == {"up"}
    assert not ask(checkout, "alerts")["alerts"]

    compose(checkout, broker, "stop", "worker")
    compose(
        checkout, broker, "run", "--rm", "-T", "--no-deps", "worker", "python", "-m", "app.producer", "mail.send_email", "-",
        words='["a@b.c", "hi"]\n',
    )  # fmt: skip

    def firing() -> set[str]:
        return {one["labels"]["alertname"] for one in ask(checkout, "alerts")["alerts"] if one["state"] == "firing"}

    until("the alerts fire", lambda: {"NoConsumers", "WorkerDead"} <= firing(), 240)


def named_on_the_dashboard() -> set[str]:
    dashboard = json.loads((ROOT / "deploy/observability/dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return {name for query in queries for name in re.findall(r"\b(?:celery_kit|flower)_\w+", query)}


def test_each_rule_fires_when_it_must_and_not_else(checkout: Checkout) -> None:
    """promtool, from the image that runs them."""
    assert checkout.run("deploy/images/choose.sh", MONITOR="1").returncode == 0
    chosen = (checkout.folder / ".env").read_text().splitlines()
    image = next(line.partition("=")[2] for line in chosen if line.startswith("PROMETHEUS_IMAGE="))
    folder = f"{checkout.folder}/deploy/observability:/rules:ro"
    done = checkout.run(
        "docker",
        "run",
        "--rm",
        "--volume",
        folder,
        "--entrypoint",
        "promtool",
        image,
        "test",
        "rules",
        "/rules/alerts.test.yml",
    )
    assert done.returncode == 0 and "SUCCESS" in done.stdout


def test_it_is_not_open_and_not_for_a_stack_without_containers(checkout: Checkout) -> None:
    assert "MONITOR=1 needs a stack of containers" in checkout.refusal(checkout.make("up", "MONITOR=1"))
    for file, said in (("", "names no file"), ("/nonexistent", "cannot be read"), ("/dev/null", "is empty")):
        done = checkout.run(".venv/bin/python", "-m", "app.monitor", MONITOR_PASSWORD_FILE=file)
        assert said in checkout.refusal(done)
