"""A signed result that is stored for another task or group is refused by whoever reads it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SecurityError
from celery.result import GroupResult

from celery_kit import Kit
from celery_kit.base.security import Signing
from tests.unit.base.test_signing import files


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Any]:
    made: Any = Kit("bound", set_as_current=False, broker="memory://", backend="cache+memory://")
    made.conf.update(Signing(*files(tmp_path, kind="ed25519")).settings(["json"]))
    made.backend.client.cache.clear()  # it is the process'
    yield made
    made.backend.client.cache.clear()


def copy(app: Any, key: Any, one: str, other: str) -> None:
    app.backend.set(key(other), app.backend.get(key(one)))


def test_a_result_of_another_task_is_refused(app: Any) -> None:
    app.backend.store_result("one", 5, "SUCCESS")
    copy(app, app.backend.get_key_for_task, "one", "other")
    assert app.AsyncResult("one").get() == 5
    assert app.AsyncResult("none").state == "PENDING"
    with pytest.raises(SecurityError, match="stored for other was signed for one"):
        assert app.AsyncResult("other").state
    assert dict(app.backend.get_many(["one"], timeout=5))["one"]["result"] == 5
    with pytest.raises(SecurityError, match="stored for other was signed for one"):
        list(app.backend.get_many(["other"], timeout=5))


def test_what_is_no_result_of_a_task_is_refused(app: Any) -> None:
    key = app.backend.get_key_for_task
    contents: list[dict[str, Any]] = [
        {"status": "SUCCESS", "result": 1},
        {"status": "PENDING", "result": 1, "task_id": "x"},
        {"result": []},
    ]
    for content in contents:
        app.backend.set(key("other"), app.backend.encode(content))
        with pytest.raises(SecurityError, match=r"stored for other (was signed for|is no signed result)"):
            assert app.AsyncResult("other").state


def test_an_unsigned_result_is_refused(app: Any) -> None:
    app.backend.set(app.backend.get_key_for_task("other"), '{"status": "SUCCESS", "result": 1, "task_id": "other"}')
    with pytest.raises(SecurityError):
        assert app.AsyncResult("other").state


def test_a_group_of_another_id_is_refused(app: Any) -> None:
    one = GroupResult("one", [app.AsyncResult("a")], app=app)
    one.save()
    copy(app, app.backend.get_key_for_group, "one", "other")
    assert GroupResult.restore("one", app=app).id == "one"
    assert GroupResult.restore("none", app=app) is None
    with pytest.raises(SecurityError, match="stored for other was signed for one"):
        GroupResult.restore("other", app=app)
