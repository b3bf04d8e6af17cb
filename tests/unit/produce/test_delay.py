"""A `delay()` that is made from the one before it sends what Celery would; what asks for more goes Celery's way."""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from functools import wraps
from struct import pack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from weakref import ref

import pytest
from amqp import spec
from amqp.serialization import decode_properties_basic
from celery import Celery, Task, _state, signals
from kombu import Producer as KombuProducer
from kombu import Queue
from kombu.exceptions import EncodeError, OperationalError
from kombu.message import Message as Received
from kombu.transport import redis

from celery_kit import Kit
from celery_kit.base import correlation
from celery_kit.base.messages import Part, RefusedError, message_of
from celery_kit.brokers.rabbitmq.frames_out import Publishing
from celery_kit.brokers.redis.bulk import like as redis_like
from celery_kit.engine.quick_json import encoders
from celery_kit.produce.alike import SILENT

#: What two messages of one task have of their own.
OWN = ("id", "root_id", "sent")


class Wire:
    """An app whose messages arrive here: `likes` are made from the first, `celerys` came Celery's way."""

    def __init__(self) -> None:
        self.app = Kit("nowhere", set_as_current=False, broker="memory://", backend="cache+memory://")
        self.app.conf.task_default_queue = "wire"
        self.likes: list[Part] = []
        self.fails: list[Exception] = []

        @self.app.task(name="some.task", shared=False)
        def task(x: Any, y: Any = 2) -> None: ...

        self.task: Any = task
        pool: Any = self.app.amqp.producer_pool
        pool.Producer.like = staticmethod(self.like)

    def like(self, channel: Any, part: Part, seconds: float) -> None:
        self.likes.append(part)
        if self.fails:
            raise self.fails.pop()

    def celerys(self) -> list[Any]:
        with self.app.connection_for_read() as connection, connection.SimpleQueue("wire", no_ack=True) as queue:
            return [queue.get(block=False) for _ in range(queue.qsize())]


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.celerys()
    made.app.close()


def test_a_task_that_is_sent_again_is_made_from_its_first_message(wire: Wire) -> None:
    results = [wire.task.delay(n, y="é") for n in range(3)]
    assert [part.id for part in wire.likes] == [result.id for result in results]
    assert len({part.id for part in wire.likes}) == 3
    assert len({part.sample for part in wire.likes}) == 1
    assert not wire.celerys()


@pytest.mark.parametrize(("args", "kwargs"), [((1,), {}), (("it's", [1]), {}), ((1.5,), {"y": {"a": None}})])
def test_what_is_sent_is_what_celery_would_send(wire: Wire, args: Any, kwargs: Any) -> None:
    for _ in range(2):
        wire.task.delay(*args, **kwargs)
    wire.task.apply_async(args, kwargs, retry=True)
    part, theirs = wire.likes[1], wire.celerys()[0]
    assert json.loads(part.body) == json.loads(theirs.body)
    sample = part.sample
    headers = {**sample.headers, "argsrepr": part.argsrepr, "kwargsrepr": part.kwargsrepr}
    assert {**SILENT, **headers, **dict.fromkeys(OWN)} == {**theirs.headers, **dict.fromkeys(OWN)}
    assert part.sent >= sample.headers["sent"]
    assert part.reply_to == theirs.properties["reply_to"]
    assert sample.properties["delivery_mode"] == theirs.properties["delivery_mode"]
    assert (sample.content_type, sample.routing_key) == (theirs.content_type, theirs.delivery_info["routing_key"])


@pytest.mark.parametrize(
    "options",
    [{"countdown": 5}, {"priority": None}, {"headers": {}}, {"task_id": "mine"}, {"expires": 9}, {"queue": Queue("wire")}],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("by_name", [False, True])
def test_a_call_with_options_of_its_own_goes_celerys_way(wire: Wire, options: dict[str, Any], by_name: bool) -> None:
    wire.task.delay(1)
    if by_name:
        wire.app.send_task("some.task", (1,), **options)
    else:
        wire.task.apply_async((1,), **options)
    assert len(wire.likes) == len(wire.celerys()) == 1


def test_calls_for_another_queue_or_priority_are_made_from_the_first_of_their_own(wire: Wire) -> None:
    other: dict[str, Any] = {"queue": "other"}
    every: list[dict[str, Any]] = [{}, {"queue": "wire"}, other, {"priority": 3}, {**other, "priority": 3}]
    for options in every * 2:
        wire.task.apply_async((1,), **options)
    assert not wire.celerys()
    samples = [part.sample for part in wire.likes]
    assert samples[:5] == samples[5:] and len(set(samples)) == 5
    for options in every:
        wire.task.apply_async((1,), **options, retry=True)  # Celery's way
    theirs = [(one.delivery_info["routing_key"], one.properties["priority"]) for one in wire.celerys()]
    assert [(one.routing_key, one.priority or 0) for one in samples[:5] if one.routing_key == "wire"] == theirs
    assert [one.routing_key for one in samples[:5]] == ["wire", "wire", "other", "wire", "other"]
    assert [one.priority for one in samples[3:5]] == [3, 3]


@pytest.mark.parametrize("name", ["some.task", "nobody.knows"])
def test_what_is_sent_by_name_is_what_celery_would_send(wire: Wire, name: str) -> None:
    results = [wire.app.send_task(name, [1], {"y": "é"}, queue="wire", priority=3) for _ in range(3)]
    wire.app.send_task(name, [1], {"y": "é"}, queue="wire", priority=3, retry=True)
    part, theirs = wire.likes[2], wire.celerys()[0]
    assert [one.id for one in wire.likes] == [result.id for result in results]
    assert json.loads(part.body) == json.loads(theirs.body)
    sample = part.sample
    headers = {**sample.headers, "argsrepr": part.argsrepr, "kwargsrepr": part.kwargsrepr}
    assert {**SILENT, **headers, **dict.fromkeys(OWN)} == {**theirs.headers, **dict.fromkeys(OWN)}
    assert (sample.priority, sample.routing_key) == (3, theirs.delivery_info["routing_key"])


def test_of_a_known_name_celery_takes_the_options_and_does_not_look_at_the_arguments(wire: Wire) -> None:
    wire.task.queue, wire.task.priority = "other", 3
    wire.app.send_task("some.task", [1, 2, 3, 4])
    assert [(one.sample.routing_key, one.sample.priority) for one in wire.likes] == [("other", 3)]
    with pytest.raises(TypeError):
        wire.task.delay(1, 2, 3, 4)


def test_a_name_that_becomes_known_is_asked_again(wire: Wire) -> None:
    wire.app.send_task("late.task")

    @wire.app.task(name="late.task", shared=False, queue="other")
    def late() -> None: ...

    wire.app.finalize()
    wire.app.send_task("late.task")
    assert [part.sample.routing_key for part in wire.likes] == ["wire", "other"]


def test_names_that_are_made_up_fill_no_memory(wire: Wire) -> None:
    with patch("celery_kit.produce.delay._MOST", 3):
        for number in range(9):
            wire.app.send_task(f"made-up.{number}")
    delays: Any = wire.app.delays
    assert len(delays._plans) <= 3
    assert len(wire.likes) == 9


def test_a_send_task_that_somebody_has_replaced_sees_each_call_by_name(wire: Wire) -> None:
    seen = []
    plain = Kit.send_task

    @wraps(plain)
    def wrapped(app: Any, name: str, *args: Any, **options: Any) -> Any:
        seen.append(name)
        return plain(app, name, *args, **options)

    wire.app.send_task("some.task")
    with patch.object(Kit, "send_task", wrapped):
        wire.app.send_task("some.task")
    assert seen == ["some.task"] and len(wire.celerys()) == 1


def test_a_call_that_links_another_goes_celerys_way(wire: Wire) -> None:
    wire.task.apply_async((1,), link=wire.task.si(2))
    (message,) = wire.celerys()
    assert json.loads(message.body)[2]["callbacks"] and not wire.likes


def test_a_call_within_a_correlation_has_its_name(wire: Wire) -> None:
    with correlation.correlation("order-7"):
        wire.task.delay(1)
    assert wire.celerys()[0].headers["correlation"] == "order-7"


def test_a_call_by_a_task_names_it_as_its_parent(wire: Wire) -> None:
    wire.task.delay(1)
    wire.task.push_request(id="parent", root_id="root", called_directly=False)
    stack = vars(_state)["_task_stack"]
    stack.push(wire.task)
    try:
        wire.task.delay(1)
    finally:
        stack.pop()
        wire.task.pop_request()
    headers = wire.celerys()[0].headers
    assert (headers["parent_id"], headers["root_id"]) == ("parent", "root")


@pytest.mark.parametrize("signal", [signals.before_task_publish, signals.after_task_publish, signals.task_sent])
def test_who_listens_to_the_signals_of_a_publish_hears_of_each(wire: Wire, signal: Any) -> None:
    heard = []

    def listen(sender: Any, **_: Any) -> None:
        heard.append(sender)

    wire.task.delay(1)
    signal.connect(listen)
    try:
        wire.task.delay(1)
    finally:
        signal.disconnect(listen)
    wire.task.delay(1)
    assert heard == ["some.task"]
    assert len(wire.celerys()) == 1


def _routed_by_a_function(app: Any) -> None:
    app.conf.task_routes = (lambda *_, **__: {"queue": "wire"},)
    app.amqp.flush_routes()


def _overridden(app: Any) -> None:
    own = app.send_task
    app.send_task = lambda *args, **options: own(*args, **options)


@pytest.mark.parametrize(
    "change",
    [
        _routed_by_a_function,
        _overridden,
        lambda app: app.conf.update(task_send_sent_event=True),
        lambda app: app.conf.update(task_publish_retry=False),
        lambda app: app.conf.update(task_compression="zlib"),
    ],
    ids=["a router", "its own send_task", "an event", "no retry", "compression"],
)
@pytest.mark.parametrize("before", [0, 1])
def test_an_app_that_asks_for_more_sends_each_celerys_way(wire: Wire, change: Callable[[Any], None], before: int) -> None:
    """Whether it asks from the start, or after some were sent."""
    for _ in range(before):
        wire.task.delay(1)
    change(wire.app)
    for _ in range(2):
        wire.task.delay(1)
    assert (len(wire.likes), len(wire.celerys())) == (before, 2)


@pytest.mark.parametrize("before", [0, 1])
def test_what_stands_in_the_place_of_celerys_apply_async_sees_each_call(wire: Wire, before: int) -> None:
    """As Sentry does it: by a patch of Celery's own class."""
    celerys: Any = Task
    seen, own = [], celerys.apply_async

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(args[1])
        return own(*args, **options)

    for _ in range(before):
        wire.task.delay(0)
    with patch.object(celerys, "apply_async", watched):
        wire.task.delay(1)
        wire.task.delay(2)
    assert seen == [(1,), (2,)]
    assert (len(wire.likes), len(wire.celerys())) == (before, 2)


def test_an_eager_app_runs_the_task(wire: Wire) -> None:
    wire.task.delay(1)
    wire.app.conf.task_always_eager = True
    with patch.object(wire.task, "apply", return_value="ran"):
        assert wire.task.delay(1) == "ran"
    assert len(wire.likes) == 1


def _other_queue(wire: Wire) -> None:
    wire.app.amqp.queues.add(Queue("wire", routing_key="other"))


@pytest.mark.parametrize(
    "change",
    [
        _other_queue,
        lambda wire: wire.app.conf.update(task_default_delivery_mode=1),
        lambda wire: setattr(wire.task, "ignore_result", True),
        lambda wire: setattr(wire.task, "_exec_options", {"priority": 7}),
    ],
    ids=["a queue", "a setting", "results", "an option"],
)
def test_a_change_of_what_celery_looks_at_is_seen(wire: Wire, change: Callable[[Wire], None]) -> None:
    for _ in range(2):
        wire.task.delay(1)
    change(wire)
    for _ in range(2):
        wire.task.delay(1)
    samples = [part.sample for part in wire.likes]
    assert samples[0] is samples[1] is not samples[2] is samples[3]
    assert wire.task.delay(1).ignored == wire.task.ignore_result == samples[3].headers["ignore_result"]


def test_a_forked_child_names_itself_as_the_origin(wire: Wire) -> None:
    wire.task.delay(1)
    with patch("os.getpid", return_value=7):
        wire.task.delay(1)
    assert wire.likes[1].sample.headers["origin"].startswith("gen7@")


def test_a_message_that_was_not_confirmed_is_sent_again_with_its_id(wire: Wire) -> None:
    wire.task.delay(1)
    wire.fails.append(OperationalError("away"))
    assert [part.id for part in wire.likes[1:]] == []
    result = wire.task.delay(1)
    assert [part.id for part in wire.likes[1:]] == [result.id] * 2


def test_a_message_that_is_refused_is_an_error_at_once(wire: Wire) -> None:
    wire.task.delay(1)
    wire.fails.append(RefusedError("full"))
    with pytest.raises(RefusedError):
        wire.task.delay(1)
    assert len(wire.likes) == 2


@pytest.mark.parametrize("before", [0, 1])
def test_what_celery_raises_is_raised(wire: Wire, before: int) -> None:
    for _ in range(before):
        wire.task.delay(1)
    with pytest.raises(TypeError, match="positional arguments"):
        wire.task.delay(1, 2, 3)
    with pytest.raises(EncodeError):
        wire.task.delay(object())
    assert len(wire.likes) == before


class Channel(Publishing):
    """One whose frames arrive here, and whose broker answers with `answer`."""

    def __init__(self, answer: Any = spec.Basic.Ack) -> None:
        self.written: list[bytes] = []
        self.returned: list[str] = []
        self.channel_id, self._confirm_selected = 7, True
        confirm = (1, 7, pack(">HHQB", *answer, 1, False))
        transport = SimpleNamespace(having_timeout=lambda _: nullcontext(), read_frame=lambda: confirm)
        self.connection = SimpleNamespace(frame_max=131_072, bytes_recv=0, transport=transport, send_frames=self.written.extend)


@pytest.mark.parametrize("reply_to", ["", "é"])
def test_a_messages_header_is_written_from_its_samples(wire: Wire, reply_to: str) -> None:
    for _ in range(2):
        wire.task.delay(1, y="it's")
    part, channel = wire.likes[1]._replace(reply_to=reply_to), Channel()
    assert channel.publish_like(part, 1)
    method, header, body = channel.written
    assert (method[0], header[0], body[7:-1]) == (1, 2, part.body)
    prepare = SimpleNamespace(prepare_message=lambda body, priority, *about: (priority, *about))
    prepared: Any = message_of(prepare, part)
    priority, content_type, content_encoding, headers, properties = prepared
    assert decode_properties_basic(header, 19)[0] == {
        **properties,
        "content_type": content_type,
        "content_encoding": content_encoding,
        "application_headers": headers,
        "priority": priority,
    }
    assert headers["id"] == headers["root_id"] == part.id and headers["sent"] == part.sent


def test_a_message_that_the_broker_does_not_take_is_an_error(wire: Wire) -> None:
    wire.task.delay(1)
    with pytest.raises(RefusedError):
        Channel(spec.Basic.Nack).publish_like(wire.likes[0], 1)


def test_what_does_not_fit_is_left_to_py_amqp(wire: Wire) -> None:
    wire.task.delay(1)
    part, channel = wire.likes[0], Channel()
    odd = replace(part.sample, headers={**part.sample.headers, "odd": object()})
    assert not channel.publish_like(part._replace(body=b"x" * 131_072), 1)
    assert not channel.publish_like(part._replace(sample=odd), 1)
    channel._confirm_selected = False
    assert not channel.publish_like(part, 1)
    assert not channel.written


class Client:
    """Takes Redis commands."""

    def __init__(self) -> None:
        self.pushed: list[tuple[str, str]] = []

    def lpush(self, key: str, value: str) -> None:
        self.pushed.append((key, value))


KombusChannel: Any = redis.Channel  # its stubs are those of an older one


class RedisChannel(KombusChannel):  # type: ignore[misc]
    """kombu's, with a client that is there already."""

    def __init__(self, client: Client) -> None:
        self._expires: dict[str, int] = {}
        self.connection = None
        self.conn_or_acquire = lambda: nullcontext(client)

    def __del__(self) -> None: ...


def test_a_messages_envelope_is_kombus(wire: Wire) -> None:
    """But for its ids and tag: kombu publishes the sample, and then one that is like it."""
    for _ in range(2):
        wire.task.delay(1, y='a"b')
    client, part = Client(), wire.likes[1]
    channel = RedisChannel(client)
    sample = part.sample
    message = channel.prepare_message(
        part.body, sample.priority, sample.content_type, sample.content_encoding, *message_parts(part)
    )
    channel.basic_publish(message, "", "wire")
    redis_like(channel, part._replace(sample=replace(sample, exchange="", routing_key="wire")), 1)
    (key, theirs), (same, ours) = client.pushed
    tags = [json.loads(text)["properties"].pop("delivery_tag") for text in (theirs, ours)]
    assert key == same and tags[0] != tags[1]
    assert theirs.replace(tags[0], "") == ours.replace(tags[1], "")


def message_parts(part: Part) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its headers, and its properties."""
    prepare = SimpleNamespace(prepare_message=lambda *about: about[-2:])
    prepared: Any = message_of(prepare, part)
    headers, properties = prepared
    return headers, {**properties, "delivery_info": {}}


def test_a_body_that_is_more_than_json_is_made_by_celery_each_time(wire: Wire) -> None:
    """Compressed, as the task or its route asks: a message like it would say so in its header, and not be it."""

    @wire.app.task(name="packed", shared=False, compression="zlib")
    def packed(x: int) -> None: ...

    wire.app.conf.task_routes = {"some.task": {"compression": "bzip2"}}
    for number in range(3):
        packed.delay(number)
        wire.task.delay(number)
    took: Any = Received
    messages = [took(part.body, headers=part.sample.headers) for part in wire.likes] + wire.celerys()
    assert not any(message.errors for message in messages)
    bodies = [json.loads(message.body) for message in messages]
    assert sorted(args[0] for args, *_ in bodies) == [0, 0, 1, 1, 2, 2]


def test_a_task_that_is_a_class_takes_any_arguments(wire: Wire) -> None:
    class Classic(wire.app.Task):  # type: ignore[name-defined,misc]
        name = "classic"

        def run(self, *_: Any) -> None: ...

    task: Any = wire.app.register_task(Classic())
    for number in range(3):
        task.delay(number)
    assert len(wire.likes) == 3


def test_a_spy_on_a_task_sees_each_call(wire: Wire) -> None:
    with patch.object(wire.task, "apply_async", wraps=wire.task.apply_async) as spy:
        for number in range(3):
            wire.task.delay(number)
    assert spy.call_count == 3


@pytest.mark.parametrize("owner", [Celery, KombuProducer])
def test_what_stands_in_the_place_of_a_later_step_sees_each_call(wire: Wire, owner: Any) -> None:
    name = "send_task" if owner is Celery else "publish"
    original, seen = getattr(owner, name), []

    @wraps(original)
    def patched(*args: Any, **options: Any) -> Any:
        seen.append(1)
        return original(*args, **options)

    wire.task.delay(0)
    with patch.object(owner, name, patched):
        for number in range(3):
            wire.task.delay(number)
    assert len(seen) == 3


def test_a_writer_of_json_that_a_user_has_registered_writes_each_body(wire: Wire) -> None:
    writer = encoders["json"]
    encoders["json"] = writer._replace(encoder=lambda value: json.dumps(value, default=lambda _: "mine"))
    try:
        for _ in range(3):
            wire.task.delay(date(2026, 1, 2))
    finally:
        encoders["json"] = writer
    assert [message.payload[0] for message in wire.celerys()] == [["mine"]] * 3


class Passing:
    """Of a connection to Redis."""

    def prepare_message(self, *_: Any) -> Any:
        return {"properties": {"delivery_tag": "tag"}}

    def basic_publish(self, *_: Any, _publish_batch: Any) -> None:
        _publish_batch.add("lpush", "key", "value")

    def conn_or_acquire(self) -> Any:
        return nullcontext(SimpleNamespace(lpush=lambda *_: None))


def test_a_channel_that_is_gone_is_not_kept(wire: Wire) -> None:
    wire.task.delay(1)
    part = wire.likes[0]
    channel: Any = Passing()
    redis_like(channel, part._replace(sample=replace(part.sample, exchange="")), 1.0)
    gone = ref(channel)
    del channel
    gc.collect()
    assert gone() is None
