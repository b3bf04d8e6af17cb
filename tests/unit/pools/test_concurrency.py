"""How many tasks a worker runs at once where nobody names a number: Celery's `auto`, within the container's CPU limit."""

from pathlib import Path
from typing import Any

import pytest
from celery.utils import sysinfo

from celery_kit import Kit
from celery_kit.pools.table import POOLS
from tests.unit.app.test_config import settings

#: By where it is set: the settings of the app, and the options of app.Worker, which the command line hands on.
SET: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nowhere": ({}, {}),
    "in the settings": ({"worker_concurrency": "auto"}, {}),
    "on the command line": ({"worker_concurrency": 7}, {"concurrency": "auto"}),
}
PLAIN = [name for name, pool in POOLS.items() if not pool.sockets_patched]


@pytest.fixture
def one_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that a container with `--cpus 1` sees, on a machine with four processors."""
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "self").write_text("0::/\n")
    monkeypatch.setattr(sysinfo, "CGROUP_ROOT", str(tmp_path))
    monkeypatch.setattr(sysinfo, "PROC_SELF_CGROUP", str(tmp_path / "self"))
    monkeypatch.setattr(sysinfo, "available_cpu_count", lambda: 4)
    monkeypatch.setenv("BROKER", "redis")


def worker(pool: str, conf: dict[str, Any], options: dict[str, Any]) -> Any:
    """A worker that is not started."""
    own = Kit("one", broker="memory://", set_as_current=False)
    own.conf.update(conf)
    return own.Worker(pool_cls=pool, **options)


@pytest.mark.parametrize("given", SET)
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.usefixtures("one_cpu", "made_and_forgotten")
def test_auto_is_the_containers_cpu_limit_on_prefork_and_elsewhere_the_pools_own_number(name: str, given: str) -> None:
    """Wherever it is said, and where nothing is said: the limit counts, not the machine's processors."""
    assert worker(name, *SET[given]).concurrency == (POOLS[name].concurrency or 1)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.usefixtures("one_cpu", "made_and_forgotten")
def test_a_number_is_a_number(name: str) -> None:
    assert worker(name, {}, {"concurrency": 3}).concurrency == 3
    assert worker(name, {"worker_concurrency": 3}, {}).concurrency == 3


def test_the_app_itself_says_auto() -> None:
    assert settings()["worker_concurrency"] == "auto"
