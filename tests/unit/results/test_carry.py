"""The results of one server are copied to another one. celery_kit/results/redis/backend.py, copy"""

import json
from contextlib import closing
from typing import Any

from redis import Redis

from celery_kit.results.redis.backend import carry
from tests.harness.kit import kit
from tests.harness.servers import Server


def test_results_are_copied_and_what_has_ended_stays() -> None:
    with Server() as server, closing(kit(server.urls)) as app:
        source, target = server.urls["CELERY_RESULT_BACKEND"], f"redis://127.0.0.1:{server.port}/2"
        for number in range(450):  # several round trips
            app.backend.store_result(f"t{number}", number, "SUCCESS")
        app.backend.store_result("runs", None, "STARTED")
        former, latter = Redis.from_url(source), Redis.from_url(target)
        former.set("claim", "mine", ex=100)
        assert carry(app, source, target) == 452
        assert carry(app, source, target) == 0
        assert 0 < int(latter.ttl("claim")) <= 100
        assert 0 < int(latter.ttl("celery-task-meta-t7")) <= 86_400

        with closing(kit({**server.urls, "CELERY_RESULT_BACKEND": target})) as other:
            assert other.AsyncResult("t449").get() == 449
            other.backend.store_result("runs", "done there", "SUCCESS")
            latter.delete("celery-task-meta-t1")
            other.backend.store_result("t1", None, "STARTED")
        assert carry(app, source, target) == 1
        states: dict[str, Any] = {name: _state(latter, name) for name in ("runs", "t1")}
        assert states == {"runs": "SUCCESS", "t1": "SUCCESS"}
        assert carry(app, target, source) == 1  # back: the task ended there
        assert _state(former, "runs") == "SUCCESS"


def _state(client: Any, task: str) -> str:
    return str(json.loads(client.get(f"celery-task-meta-{task}"))["status"])
