"""What send_many makes by itself is what Celery and kombu make."""

from itertools import islice
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from celery import signals
from celery.app.task import Context
from celery.utils.saferepr import saferepr

from celery_kit import Kit
from celery_kit.base.ids import ids, new_id
from celery_kit.produce.alike import SILENT, needed
from celery_kit.produce.bulk import NotAllSentError, Sender
from celery_kit.produce.publishing import brief


def test_ids_are_random_uuids() -> None:
    some = [*islice(ids(), 1_000), *(new_id() for _ in range(1_000))]
    assert len(set(some)) == 2_000
    assert {(UUID(one).version, str(UUID(one)) == one) for one in some} == {(4, True)}


@pytest.mark.parametrize(
    "value",
    [0, -1, 2**80, 1.5, 1e300, True, None, "", "plain", "it's", 'a"b', "back\\slash", "new\nline", "ünï", "\x7f", "\xad"],
)
def test_a_value_whose_repr_is_taken_reads_as_saferepr_has_it(value: Any) -> None:
    for values in ((value,), (value, value), [value], {"key": value}, {str(value): 1}):
        assert brief(values) in (None, saferepr(values))


def test_what_is_not_plain_is_left_to_saferepr() -> None:
    some: tuple[Any, ...] = ([1],), ("x" * 100,), {"a": {}}, tuple(range(1_000)), {1, 2}, "text", None
    for values in some:
        assert brief(values) is None


#: Stands where a producer would: nothing is sent here.
ANYTHING: Any = SimpleNamespace(connection=None, with_retries=None)


def nothing() -> None: ...


def test_each_message_goes_through_celery_when_somebody_wants_to_see_it() -> None:
    def see(**_: Any) -> None: ...

    app = Kit("nowhere", set_as_current=False, broker="memory://")
    task = app.task(name="some.task", shared=False)(nothing)
    assert not Sender(app, task, {}, ANYTHING).celery_makes_each
    assert Sender(app, task, {"serializer": "yaml"}, ANYTHING).celery_makes_each
    signals.before_task_publish.connect(see)
    assert Sender(app, task, {}, ANYTHING).celery_makes_each
    signals.before_task_publish.disconnect(see)


@pytest.mark.parametrize("attribute", ["shadow_name", "_dump_pydantic_arguments"])
def test_each_message_goes_through_celery_when_its_task_makes_something_of_the_arguments(attribute: str) -> None:
    """A name for each call, or the arguments themselves: that of the first would be in all of them."""
    app = Kit("nowhere", set_as_current=False, broker="memory://")
    own: dict[str, Any] = {attribute: lambda *_: "its own"}
    register: Any = app.task(name=f"with.{attribute}", **own)
    task = register(nothing)
    assert Sender(app, task, {}, ANYTHING).celery_makes_each


def test_what_was_not_sent_is_said_by_number_and_by_id() -> None:
    error = NotAllSentError("gone", ["1", "2"], ["3"], ["4"])
    assert str(error) == "2 of 4 messages are confirmed, 1 may have arrived, 1 were not sent: gone"
    assert (error.confirmed, error.uncertain, error.unsent) == (["1", "2"], ["3"], ["4"])


def test_headers_that_say_nothing_are_left_out() -> None:
    """A worker assumes the same where they are not there; what says something stays."""
    assert needed({**SILENT, "id": "1", "ignore_result": False}) == {"id": "1", "ignore_result": False}
    speaking = {"eta": "2030-01-01T00:00:00", "group": "g", "retries": 2, "stamped_headers": ["a"]}
    assert needed({**SILENT, **speaking}) == speaking


def test_a_worker_assumes_what_is_left_out() -> None:
    assert {name: getattr(Context(), name) for name in SILENT} == SILENT
