"""With QUEUE_VERSION, what is sent and what is consumed are queues of that version, whatever names them."""

from typing import Any

import pytest
from kombu import Exchange, Queue
from kombu.common import Broadcast

from celery_kit import Kit

QUEUES = [
    Queue("celery"),
    Queue("feeds", Exchange("feeds", "topic"), routing_key="feed.#"),
    Queue("mail", Exchange("mail", "topic"), routing_key="mail", max_priority=5),
    Broadcast("everyone"),
]
ROUTES = {
    "feed": {"queue": "feeds", "routing_key": "feed.new"},
    "mail": {"queue": "mail", "exchange": "mail", "routing_key": "mail"},
    "sms": {"queue": "sms"},
    "all": {"queue": "everyone"},
}


def app(version: str, **settings: Any) -> Any:
    found = Kit("queues", set_as_current=False, broker="memory://")
    found.conf.update(queue_version=version, task_queues=QUEUES, task_routes=ROUTES, **settings)
    return found


def sent_to(app: Any, task: str, **options: Any) -> tuple[str, str, str]:
    """Queue, exchange and routing key of a message."""
    found = app.amqp.router.route(options, task)
    queue = found["queue"]
    return queue.name, found.get("exchange", queue.exchange.name), found.get("routing_key", queue.routing_key)


@pytest.mark.parametrize(
    ("task", "options", "plain", "versioned"),
    [
        ("other", {}, ("celery", "celery", "celery"), ("celery@1.4", "celery@1.4", "celery@1.4")),
        ("sms", {}, ("sms", "sms", "sms"), ("sms@1.4", "sms@1.4", "sms@1.4")),
        ("other", {"queue": "sms"}, ("sms", "sms", "sms"), ("sms@1.4", "sms@1.4", "sms@1.4")),
        ("other", {"queue": "sms@1.3"}, ("sms@1.3",) * 3, ("sms@1.3",) * 3),
        ("mail", {}, ("mail", "mail", "mail"), ("mail@1.4", "mail@1.4", "mail@1.4")),
        ("feed", {}, ("feeds", "feeds", "feed.new"), ("feeds@1.4", "feeds@1.4", "feed.new")),
    ],
)
def test_a_task_goes_to_a_queue_of_the_version(
    task: str, options: dict[str, str], plain: tuple[str, str, str], versioned: tuple[str, str, str]
) -> None:
    """And to no exchange that a queue of another version is bound to."""
    assert sent_to(app(""), task, **options) == plain
    assert sent_to(app("1.4"), task, **options) == versioned


def test_a_retry_goes_where_its_message_came_from() -> None:
    """Task.retry names exchange and routing key alone."""
    _, *to = sent_to(app("1.4"), "sms", exchange="", routing_key="sms@1.4")
    assert to == ["", "sms@1.4"]


def test_a_worker_consumes_the_queues_of_the_version() -> None:
    queues = app("1.4").amqp.queues
    (everyone,) = (one for one in queues.values() if one.exchange.type == "fanout")
    assert set(queues.consume_from) == {"celery@1.4", "feeds@1.4", "mail@1.4", everyone.name}
    assert queues["everyone"] is everyone and everyone.exchange.name == "everyone", "a broadcast reaches all versions"
    queues.select(["mail", "feeds@1.4", "new", "w@host.dq2"])
    assert set(queues.consume_from) == {"mail@1.4", "feeds@1.4", "new@1.4", "w@host.dq2"}
    queues.deselect(["mail", "new@1.4"])
    assert set(queues.consume_from) == {"feeds@1.4", "w@host.dq2"}


def test_a_queue_of_a_version_has_the_arguments_of_the_one_it_is_named_after() -> None:
    """Also where its full name comes first. The app's own objects stay as they are, for another app may have them."""
    queue = app("1.4").amqp.queues["mail@1.4"]
    assert (queue.max_priority, queue.exchange.type) == (5, "topic")
    assert [one.name for one in QUEUES[:3]] == ["celery", "feeds", "mail"]
    with pytest.raises(KeyError):
        app("1.4", task_create_missing_queues=False).amqp.queues["new"]


def test_messages_of_two_versions_are_apart() -> None:
    """On a real transport of kombu's, in this process, whose queues other tests have used."""
    plain, new = app(""), app("1.4")
    names = ("celery", "celery@1.4")
    with plain.connection_for_read() as connection:
        channel = connection.channel()
        for queue in (plain.amqp.queues["celery"], new.amqp.queues["celery@1.4"]):
            queue(channel).declare()
            channel.queue_purge(queue.name)
        for one, number in ((plain, 1), (new, 2)):
            for _ in range(number):
                one.send_task("other")
        sizes = [channel.queue_declare(name, passive=True).message_count for name in names]
        for name in names:
            channel.queue_purge(name)
    assert sizes == [1, 2]
