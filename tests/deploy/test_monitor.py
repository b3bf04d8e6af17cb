"""`make up MONITOR=1`: Flower in a real browser, metrics of tasks that ran, an alert that fires because the workers stopped.

SCREENSHOTS=docs takes the pictures of docs/monitoring.md anew.
"""

import json
import os
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from playwright.sync_api import Browser, Error, Page

from celery_kit.base.login import header
from celery_kit.base.target import ROOT
from celery_kit.operate.groups import Group
from celery_kit.operate.kubernetes.render import triggers
from celery_kit.pools.table import POOLS
from testbed.servers import SERVERS
from tests.browser.conftest import browser  # noqa: F401  # a fixture
from tests.deploy.conftest import Checkout
from tests.deploy.test_status import compose
from tests.harness.waiting import until

PAIRS = [("rabbitmq", "prefork"), ("redis", "gevent")]
GRAFANA = ROOT / "deploy/observability/grafana"
#: A row of Flower's list of workers; its host is the container's id.
ONLINE = r"celery@\s*([0-9a-f]{12})\s+Online"

#: Images are built, and an alert takes its minutes.
pytestmark = pytest.mark.timeout(1_500)


def go(page: Page, url: str) -> None:
    """Show a page, with all that it fetches. Chromium ends what it has begun when a network of containers comes or goes."""

    def shown() -> bool:
        try:
            page.goto(url, wait_until="networkidle")
        except Error as error:
            if "ERR_NETWORK_CHANGED" not in str(error):
                raise
            return False
        return True

    until(f"{url} is shown", shown, 60)


class Flower:
    """Its pages, logged in."""

    def __init__(self, checkout: Checkout, browser: Browser) -> None:  # noqa: F811
        self.url = f"http://127.0.0.1:{checkout.environ['FLOWER_PORT']}"
        self.password = (checkout.folder / ".kit/monitor/password").read_text()
        account: Any = {"username": "kit", "password": self.password}
        self.page = browser.new_context(http_credentials=account, viewport={"width": 1280, "height": 720}).new_page()

    def shows(self, path: str, words: str) -> bool:
        """Whether a page says `words`, a pattern, once its tables have been filled."""
        go(self.page, f"{self.url}/{path}")
        return bool(re.search(words, self.page.locator("body").inner_text()))


def keep(page: Page, name: str) -> None:
    """A screenshot, where SCREENSHOTS names a folder of the project."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(ROOT / folder / name), full_page=True)


def ask(checkout: Checkout, path: str, **query: str) -> Any:
    """Prometheus' HTTP API."""
    url = f"http://127.0.0.1:{checkout.environ['PROMETHEUS_PORT']}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    account = {"Authorization": header("kit", (checkout.folder / ".kit/monitor/password").read_text())}
    with urllib.request.urlopen(urllib.request.Request(url, headers=account), timeout=5) as answer:
        return json.load(answer)["data"]


def value(checkout: Checkout, query: str) -> float:
    """The sum of a query's samples; 0 where there are none."""
    return sum(float(sample["value"][1]) for sample in ask(checkout, "query", query=query)["result"])


def firing(checkout: Checkout) -> set[str]:
    return {one["labels"]["alertname"] for one in ask(checkout, "alerts")["alerts"] if one["state"] == "firing"}


def dashboard() -> dict[str, Any]:
    return dict(json.loads((GRAFANA / "dashboard.json").read_text()))


def queries() -> list[str]:
    """Of all panels of the dashboard."""
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


@pytest.fixture(autouse=True)
def nothing_left(checkout: Checkout) -> Iterator[None]:
    """Each stack begins with no data: what one counted is none of the next one's."""
    yield
    checkout.make("down", "VOLUMES=1")


@pytest.mark.parametrize(("broker", "pool"), PAIRS)
def test_flower_metrics_and_an_alert_in_life(
    checkout: Checkout,
    browser: Browser,  # noqa: F811
    broker: str,
    pool: str,
) -> None:
    up = checkout.make("up", f"BROKER={broker}", f"POOL={pool}", "MONITOR=1")
    assert up.returncode == 0
    flower = Flower(checkout, browser)
    assert flower.password not in up.stdout + up.stderr

    until("Flower shows the worker", lambda: flower.shows("workers", ONLINE), 60)
    done = checkout.make("send", "TASK=mail.send_email", 'ARGS=["a@b.c", "hi"]', "WAIT=30").stdout.split()[0]
    failed = checkout.make("send", "TASK=media.waveform", 'ARGS=["none.wav"]', "WAIT=30").stdout.split()[0]
    until("Flower shows the success", lambda: flower.shows(f"task/{done}", "SUCCESS"), 30)
    until("Flower shows the failure, and why", lambda: flower.shows(f"task/{failed}", r"FAILURE[\s\S]*FileNotFoundError"), 30)
    keep(flower.page, "flower-task.png")
    until("Flower lists both", lambda: flower.shows("tasks", r"media\.waveform[\s\S]*mail\.send_email"), 30)
    keep(flower.page, "flower-tasks.png")

    def counted(query: str, number: float) -> None:
        until(f"{query} is {number:g}", lambda: value(checkout, query) == number, 60, every=1)

    for kind in ("started", "succeeded"):
        counted(f'flower_events_total{{type="task-{kind}",task="mail.send_email"}}', 1)
    counted('flower_events_total{type="task-failed",task="media.waveform"}', 1)
    counted('celery_kit_tasks_total{task="mail.send_email",queue="celery",outcome="succeeded"}', 1)
    counted('celery_kit_tasks_total{task="media.waveform",outcome="failed"}', 1)
    counted('celery_kit_task_wait_seconds_count{queue="celery"}', 2)
    counted("celery_kit_workers", 1)
    counted(f'celery_kit_worker_processed{{pool="{pool}"}}', 2)
    until("beat's rounds are seen", lambda: 0 < value(checkout, "celery_kit_beat_silent_seconds") < 60, 60)
    for one in queries():
        until(f"the dashboard has what it shows: {one}", lambda: ask(checkout, "query", query=one)["result"], 60)  # noqa: B023
    assert {target["health"] for target in ask(checkout, "targets")["activeTargets"]} == {"up"}
    assert not firing(checkout)

    compose(checkout, broker, "stop", "worker")
    compose(
        checkout, broker, "run", "--rm", "-T", "--no-deps", "worker", "python", "-m",
        "celery_kit.operate.look.send", "mail.send_email", "-",
        words='["a@b.c", "hi"]\n',
    )  # fmt: skip
    until("the alerts fire", lambda: {"NoConsumers", "WorkerDead"} <= firing(checkout), 240, every=1)
    go(flower.page, f"http://127.0.0.1:{checkout.environ['PROMETHEUS_PORT']}/alerts")
    if (classic := flower.page.get_by_role("link", name="classic")).count():  # Debian's package has no other pages
        classic.first.click()
        go(flower.page, flower.page.url.replace("graph", "alerts"))
    keep(flower.page, "prometheus-alerts.png")

    compose(checkout, broker, "start", "worker")
    until("they cease", lambda: not firing(checkout), 120, every=1)


def test_flower_shows_the_workers_of_each_pool(checkout: Checkout, browser: Browser) -> None:  # noqa: F811
    """Five workers on one broker, each from its image."""
    first, *others = POOLS
    assert checkout.make("up", "BROKER=redis", f"POOL={first}", "MONITOR=1").returncode == 0
    for pool in others:
        compose(checkout, "redis", "run", "--detach", "--no-deps", "worker", POOL=pool, WORKER_SEND_TASK_EVENTS="1")
    flower = Flower(checkout, browser)
    until("Flower shows them all", lambda: flower.shows("workers", rf"(?:{ONLINE}[\s\S]*){{{len(POOLS)}}}"), 90)
    keep(flower.page, "flower-workers.png")
    nodes = [f"celery@{host}" for host in re.findall(ONLINE, flower.page.locator("body").inner_text())]

    def pool_of(node: str) -> str:
        flower.shows(f"worker/{node}", "")
        found = re.search(r"celery_kit\.pools\.\w+:\w+", flower.page.locator("body").inner_text())
        return found[0] if found else ""

    shown = [until(f"Flower has asked {node}", lambda node=node: pool_of(node), 60) for node in nodes]  # type: ignore[misc]
    assert sorted(shown) == sorted(pool.kind for pool in POOLS.values())


def test_a_strangers_task_runs_everywhere_and_is_found_in_flower(
    checkout: Checkout,
    browser: Browser,  # noqa: F811
) -> None:
    """README's own task and commands, as they stand there; no step between them."""
    section = (ROOT / "README.md").read_text().partition("## Add your own task")[2].partition("\n## ")[0]
    file = re.search(r"`(app/tasks/\w+\.py)`", section)
    task = re.search(r"^ *```python\n(.*?)^ *```", section, re.MULTILINE | re.DOTALL)
    typed = re.search(r"^ *```sh\n(.*?)^ *```", section, re.MULTILINE | re.DOTALL)
    assert file and task and typed
    (checkout.folder / file[1]).write_text("\n".join(line[3:] for line in task[1].splitlines()) + "\n")
    brokers = set()
    for line in typed[1].splitlines():
        done = checkout.run("sh", "-c", line.strip())
        assert done.returncode == 0, line
        brokers |= set(re.findall(r"BROKER=(\w+)", line))
        if "make send" in line:
            assert "state     SUCCESS" in done.stdout and "order 7 is billed" in done.stdout
        if "MONITOR=1" in line:
            flower = Flower(checkout, browser)
            until("Flower shows the worker", lambda: flower.shows("workers", "Online"), 60)  # noqa: B023
        if "make send" in line and brokers == set(SERVERS):
            until("Flower lists it", lambda: flower.shows("tasks", r"shop\.bill[\s\S]*SUCCESS"), 30)  # noqa: B023
    assert brokers == set(SERVERS)


#: A group with a target wait.
MAIL = Group("mail", "gevent", ("mail.high", "mail-low"), (1, 4), target_wait=5)
#: Series of two queues of a group, of another queue whose name a careless pattern takes for one of them, and of another stack.
OF_QUEUES = """
celery_kit_queue_waiting{namespace="shop",queue="mail.high"} 30x20
celery_kit_queue_waiting{namespace="shop",queue="mail-low"} 5x20
celery_kit_queue_waiting{namespace="shop",queue="mailxhigh"} 1000x20
celery_kit_queue_waiting{namespace="other",queue="mail-low"} 1000x20
celery_kit_queue_unacknowledged{namespace="shop",queue="mail.high"} 10x20
celery_kit_queue_oldest_seconds{namespace="shop",queue="mail.high"} 7x20
celery_kit_queue_paused{namespace="shop",queue="mail-low"} 0x8 1x11
celery_kit_queue_paused{namespace="shop",queue="mail.high"} 0x17 1x2
celery_kit_task_wait_seconds_bucket{namespace="shop",queue="mail.high",le="0.1"} 0x20
celery_kit_task_wait_seconds_bucket{namespace="shop",queue="mail.high",le="20.1"} 0+10x5 50x14
celery_kit_task_wait_seconds_bucket{namespace="shop",queue="mail.high",le="+Inf"} 0+10x5 50x14
"""


def test_what_the_autoscaler_asks_is_answered(checkout: Checkout) -> None:
    """Its questions of Kubernetes' folder, by promtool; without any start of a task there is no wait, instead of NaN. In
    a paused queue nothing waits for a worker.
    """
    asked = {one["name"]: one["metadata"]["query"] for one in triggers(MAIL, "shop", "http://prometheus:9090", 100)}
    answers = [(asked["backlog"], "1m", 45), (asked["oldest"], "1m", 7), (f"round({asked['wait']}, 0.5)", "1m", 19)]
    answers += [(asked["backlog"], "4m", 40), (asked["oldest"], "4m", 7), (asked["backlog"], "5m", 10)]  # queues are paused
    expected: list[dict[str, Any]] = [
        {"expr": query, "eval_time": at, "exp_samples": [{"labels": "{}", "value": value}]} for query, at, value in answers
    ]
    expected.append({"expr": asked["wait"], "eval_time": "4m", "exp_samples": []})
    expected.append({"expr": asked["oldest"], "eval_time": "5m", "exp_samples": []})
    series = [dict(zip(("series", "values"), line.split(" ", 1), strict=True)) for line in OF_QUEUES.strip().splitlines()]
    test = {"interval": "15s", "input_series": series, "promql_expr_test": expected}
    (checkout.folder / "deploy/observability/autoscaler.test.yml").write_text(yaml.safe_dump({"tests": [test]}))
    done = checkout.run(*promtool(checkout), "test", "rules", "/rules/autoscaler.test.yml")
    assert done.returncode == 0 and "SUCCESS" in done.stdout


def test_each_rule_fires_when_it_must_and_not_else(checkout: Checkout) -> None:
    done = checkout.run(*promtool(checkout), "test", "rules", "/rules/alerts.test.yml")
    assert done.returncode == 0 and "SUCCESS" in done.stdout


def promtool(checkout: Checkout) -> tuple[str, ...]:
    """promtool, from the image that runs the rules."""
    assert checkout.run("deploy/images/choose.sh", COMPOSE_PROFILES="monitor").returncode == 0
    chosen = dict(line.split("=", 1) for line in (checkout.folder / ".env").read_text().splitlines() if "=" in line)
    image = os.environ.get("PROMETHEUS_IMAGE") or chosen["PROMETHEUS_IMAGE"]
    folder = f"{checkout.folder}/deploy/observability:/rules:ro"
    return ("docker", "run", "--rm", "--volume", folder, "--entrypoint", "promtool", image)


def test_the_dashboard_is_one_of_grafanas() -> None:
    """By Grafana's own types: what they do not know is not in it when it is written again."""
    register_default_plugins()
    again = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(dashboard())))
    assert _without_defaults(again, dashboard()) == dashboard()


def _without_defaults(written: Any, given: Any) -> Any:
    """`written` less the keys that `given` leaves to their defaults."""
    if isinstance(given, dict):
        return {name: _without_defaults(value, given[name]) for name, value in written.items() if name in given}
    if isinstance(given, list):
        return [_without_defaults(*pair) for pair in zip(written, given, strict=True)]
    return written


@pytest.mark.parametrize("broker", SERVERS)
def test_grafana_finds_its_source_and_its_dashboard(broker: str) -> None:
    """Its files name each other, and are mounted where it looks."""
    shown = subprocess.run(
        ["docker", "compose", "-f", f"compose.{broker}.yaml", "--profile", "*", "config", "--format", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    services = json.loads(shown.stdout)["services"]
    grafana = services["grafana"]
    mounts = {mount["target"]: Path(mount["source"]) for mount in grafana["volumes"]}
    assert all(source.is_file() for source in mounts.values())
    provisioning = "/etc/grafana/provisioning"
    (source,) = yaml.safe_load(mounts[f"{provisioning}/datasources/celery-kit.yml"].read_text())["datasources"]
    (provider,) = yaml.safe_load(mounts[f"{provisioning}/dashboards/celery-kit.yml"].read_text())["providers"]
    # Grafana's own ways to read a file and to log in; the file is a secret of its container's.
    assert source["secureJsonData"]["basicAuthPassword"] == f"$__file{{/run/secrets/{grafana['secrets'][0]['source']}}}"
    assert source["basicAuth"] and source["basicAuthUser"] == grafana["environment"]["GF_SECURITY_ADMIN_USER"] == "kit"
    url = urllib.parse.urlsplit(source["url"])
    assert url.port in {port["target"] for port in services[str(url.hostname)]["ports"]}
    assert {panel["datasource"]["uid"] for panel in dashboard()["panels"]} == {source["uid"]}
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounts[home] == GRAFANA / "dashboard.json" and str(Path(home).parent) == provider["options"]["path"]
    assert not [port for port in grafana["ports"] if port["host_ip"] != "127.0.0.1"]


def test_grafana_shows_the_dashboard_or_says_that_there_is_no_image(checkout: Checkout) -> None:
    """Where a registry answers it runs for real; where none does, one line, and nothing starts."""
    done = checkout.make("up", "BROKER=redis", "POOL=threads", "GRAFANA=1")
    if done.returncode:
        assert "Debian has no package of Grafana: set GRAFANA_IMAGE in .env" in done.stderr.splitlines()[-2]
        assert "no stack runs" in checkout.refusal(checkout.make("ps"))
        return
    account = f"kit:{(checkout.folder / '.kit/monitor/password').read_text()}@"
    url = f"http://{account}127.0.0.1:{checkout.environ['GRAFANA_PORT']}/api"
    shown = json.loads(checkout.run("curl", "-sf", f"{url}/dashboards/uid/celery-kit").stdout)
    assert shown["meta"]["provisioned"] and len(shown["dashboard"]["panels"]) == len(dashboard()["panels"])
    assert json.loads(checkout.run("curl", "-sf", f"{url}/datasources/uid/prometheus/health").stdout)["status"] == "OK"


def test_it_is_not_open_and_not_for_a_stack_without_containers(checkout: Checkout) -> None:
    for variable in ("MONITOR", "GRAFANA"):
        assert f"{variable}=1 needs a stack of containers" in checkout.refusal(checkout.make("up", f"{variable}=1"))
    for file, said in (("", "names no file"), ("/nonexistent", "cannot be read"), ("/dev/null", "is empty")):
        done = checkout.run(".venv/bin/python", "-m", "celery_kit.operate.look.monitor", MONITOR_PASSWORD_FILE=file)
        assert said in checkout.refusal(done)
