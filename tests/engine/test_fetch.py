"""The fast engine's fetch from Redis, as a consumer sees it. celery_kit/brokers/redis/fetch.py"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from socket import MSG_PEEK
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from kombu import Consumer, Exchange, Queue

from celery_kit import Kit
from celery_kit.base.messages import DEAD
from celery_kit.brokers.contract import Action, DeadLetter
from celery_kit.brokers.redis.dead import RedisDeadLetters
from celery_kit.brokers.redis.fetch import BYTES
from celery_kit.brokers.redis.transport import Transport
from celery_kit.engine.prefetch import MOST
from celery_kit.produce.publishing import Connection
from tests.harness.servers import Server
from tests.harness.waiting import until


def names(count: int = 1) -> list[str]:
    return [uuid4().hex[:8] for _ in range(count)]


@contextmanager
def connection(server: Server, engine: str = "fast", **options: Any) -> Iterator[Connection]:
    with Connection(server.urls["CELERY_BROKER_URL"], transport_options={"engine": engine, **options}) as one:
        yield one


class Taken:
    """A consumer of queues, and the messages that it received."""

    def __init__(self, connection: Connection, queues: list[str], prefetch: int = 1, **options: Any) -> None:
        self.messages: list[Any] = []
        self.then: Callable[[Any], Any] = lambda _: None
        self.connection = connection
        self.channel: Any = connection.channel()
        self.consumer = Consumer(
            self.channel, [direct(name) for name in queues], on_message=self._take, accept=["json"], **options
        )
        self.consumer.qos(prefetch_count=prefetch)
        self.consumer.consume()

    def _take(self, message: Any) -> None:
        self.messages.append(message)
        self.then(message)

    def bodies(self) -> list[Any]:
        return [message.payload for message in self.messages]

    def has(self, count: int) -> bool:
        return len(self.messages) >= count

    def drain(self, until_true: Callable[[], Any]) -> None:
        until("the consumer has it", lambda: until_true() or (self._turn() and until_true()), 30)

    def _turn(self) -> bool:
        with suppress(TimeoutError):
            self.connection.drain_events(timeout=0.05)
        return True

    def settle(self) -> None:
        """Run its loop until several iterations in a row have brought no message."""
        quiet = 0
        while quiet < 3:
            before = len(self.messages)
            self._turn()
            on_its_way = self.channel.fetcher and self.channel.fetcher.waits
            quiet = 0 if on_its_way or len(self.messages) > before else quiet + 1


def direct(name: str) -> Queue:
    return Queue(name, Exchange(name, "direct"), name)


def publish(connection: Connection, queue: str, *bodies: Any, **options: Any) -> None:
    with connection.Producer() as producer:
        for body in bodies:
            producer.publish(
                body,
                exchange=Exchange(queue, "direct"),
                routing_key=queue,
                declare=[direct(queue)],
                serializer="json",
                **options,
            )


def unacknowledged(server: Server, prefix: str = "") -> int:
    return int(server.broker.hlen(f"{prefix}unacked"))


def test_a_message_is_on_record_before_anyone_has_it(server: Server) -> None:
    """The record has kombu's format, so that any other worker can restore the messages of a dead one."""
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, "a")
        taken = Taken(one, [queue])
        taken.drain(lambda: taken.messages)
        tag = taken.messages[0].delivery_tag
        raw, exchange, routing_key = json.loads(server.broker.hget("unacked", tag) or "")
        assert (exchange, routing_key) == (queue, queue)
        assert raw["properties"]["delivery_tag"] == tag
        assert server.broker.zscore("unacked_index", tag)
        taken.messages[0].ack()
        taken.drain(lambda: not server.broker.hexists("unacked", tag) and not server.broker.zscore("unacked_index", tag))


@pytest.mark.parametrize(("dies", "restores"), [("fast", "plain"), ("plain", "fast")])
def test_engines_restore_each_others_messages(server: Server, dies: str, restores: str) -> None:
    (queue,) = names()
    with (
        connection(server, dies) as one,
        connection(server, restores, visibility_timeout=0.1, unacked_restore_interval=1) as two,
    ):
        publish(one, queue, "a")
        first = Taken(one, [queue])
        first.drain(lambda: first.messages)
        second = Taken(two, [queue])
        second.drain(lambda: second.messages)
        assert second.bodies() == ["a"] and second.messages[0].headers["redelivered"]
        second.messages[0].ack()
        first.messages[0].ack()


def test_no_more_than_the_prefetch_count_is_taken_of_slow_work(server: Server) -> None:
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, *range(50))
        taken = Taken(one, [queue], prefetch=3)
        taken.settle()
        assert taken.bodies() == [0, 1, 2] and server.broker.llen(queue) == 47
        taken.messages[0].ack()
        taken.drain(lambda: len(taken.messages) == 4)
        taken.settle()
        assert server.broker.llen(queue) == 46
        taken.consumer.qos(prefetch_count=5)
        taken.settle()
        assert taken.bodies() == [0, 1, 2, 3, 4, 5]


def test_quick_work_is_taken_in_batches(server: Server) -> None:
    """One round trip is for many messages and their acknowledgements. kombu has five for each."""
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, *range(3000))
        taken = Taken(one, [queue])
        taken.then = lambda message: message.ack()
        before = calls(server)
        taken.drain(lambda: len(taken.messages) == 3000 and not server.broker.llen(queue))
        trips = calls(server) - before
    assert taken.bodies() == list(range(3000))
    assert trips < 3000 / 10, f"{trips} round trips"
    assert unacknowledged(server) == 0


def test_what_was_taken_for_a_quicker_pace_goes_back(server: Server) -> None:
    """Quick work, then slow work: another worker gets the messages behind it, in their order."""
    (queue,) = names()
    with connection(server) as one, connection(server) as other:
        publish(one, queue, *range(600))
        slow = Taken(one, [queue])
        slow.then = lambda message: message.ack() if message.payload < 500 else None
        slow.drain(lambda: slow.has(501))
        assert slow.bodies() == list(range(501)) and server.broker.llen(queue) < 99
        slow.drain(lambda: server.broker.llen(queue) == 99)
        quick = Taken(other, [queue])
        quick.then = lambda message: message.ack()
        quick.drain(lambda: quick.has(99))
        assert quick.bodies() == list(range(501, 600))
        quick.drain(lambda: unacknowledged(server) == 1)
        slow.messages[-1].ack()


def calls(server: Server) -> int:
    """The runs of the script so far, and all commands that kombu would use instead."""
    stats = server.broker.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "brpop", "exec"))


def test_queues_take_turns(server: Server) -> None:
    busy, quiet = names(2)
    with connection(server) as one:
        publish(one, busy, *["busy"] * 20)
        publish(one, quiet, *["quiet"] * 3)
        taken = Taken(one, [busy, quiet], prefetch=6)
        taken.settle()
        assert sorted(taken.bodies()) == ["busy"] * 3 + ["quiet"] * 3


def test_a_queue_order_of_the_users_own_is_kept(server: Server) -> None:
    """With queue_order_strategy=priority, the messages of the first queue come before all others."""
    first, second = names(2)
    with connection(server, queue_order_strategy="priority") as one:
        publish(one, second, *["second"] * 5)
        publish(one, first, *["first"] * 5)
        taken = Taken(one, [first, second], prefetch=7)
        taken.settle()
        assert taken.bodies() == ["first"] * 5 + ["second"] * 2


def test_the_most_urgent_come_first(server: Server) -> None:
    (queue,) = names()
    with connection(server) as one:
        for priority in (0, 9, 3, 0, 7):
            publish(one, queue, priority, priority=priority)
        taken = Taken(one, [queue], prefetch=5)
        taken.settle()
        assert taken.bodies() == [9, 7, 3, 0, 0]


@pytest.mark.parametrize("engine", ["plain", "fast"])
def test_what_an_earlier_release_wrote_to_ten_steps_is_taken_too(server: Server, engine: str) -> None:
    """It used one list for each priority. Those between kombu's four are read, but no longer written."""
    (queue,) = names()
    with connection(server) as one:
        for priority in (1, 5, 8):
            publish(one, queue, priority, priority=priority)
            item: Any
            (item,) = [item for step in ("", "\x06\x163", "\x06\x166") if (item := server.broker.rpop(f"{queue}{step}"))]
            server.broker.lpush(f"{queue}\x06\x16{priority}", item)
    with connection(server, engine) as one:
        taken = Taken(one, [queue], prefetch=3)
        taken.drain(partial(taken.has, 3))
        assert taken.bodies() == [8, 5, 1]


def test_a_push_wakes_an_idle_consumer(server: Server) -> None:
    """The server notifies it, so that it does not have to poll."""
    (queue,) = names()
    with connection(server) as one, connection(server) as other:
        taken = Taken(one, [queue])
        taken.settle()
        for number in range(20):
            before = calls(server)
            publish(other, queue, number)
            one.drain_events(timeout=30)
            taken.drain(partial(taken.has, number + 1))
            taken.messages[-1].ack()
            taken.settle()
            assert calls(server) - before <= 5  # one of them may look for ended leases
        assert taken.bodies() == list(range(20))


def test_messages_of_any_size_come_through(server: Server) -> None:
    """Large messages come one by one: a batch ends with the message that fills it."""
    (queue,) = names()
    with connection(server) as one:
        sizes = [10, BYTES, 10, 1_000_000, 3_000_000, 10]
        publish(one, queue, *["x" * size for size in sizes])
        taken = Taken(one, [queue], prefetch=10)
        taken.settle()
        assert [len(body) for body in taken.bodies()] == sizes
        taken.channel.close()
        assert server.broker.llen(queue) == len(sizes)


def test_the_next_large_message_is_fetched_while_one_is_worked_on(server: Server) -> None:
    """The server needs milliseconds for a megabyte. The worker does not wait for them."""
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, *["x" * BYTES] * 5)
        taken = Taken(one, [queue], prefetch=2)
        on_record: list[int] = []

        def work(_: Any) -> None:
            until("the next one is on record", lambda: unacknowledged(server) == 2, 10)
            on_record.append(unacknowledged(server))

        taken.then = work
        taken.settle()
        assert on_record == [2, 2] and server.broker.llen(queue) == 3


@pytest.mark.parametrize("raw", ["", "{", "[]", '{"properties": {}}', '{"properties": {"delivery_tag": null}}', "\xff" * 5000])
def test_what_is_no_message_is_set_aside(server: Server, raw: str) -> None:
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, "before")
        server.broker.lpush(queue, raw)
        publish(one, queue, "after")
        taken = Taken(one, [queue], prefetch=10)
        taken.settle()
        assert taken.bodies() == ["before", "after"]
        assert not server.broker.llen(f"{queue}.malformed")
    kept = [letter for letter in letters(server) if letter.queue == queue]
    assert [letter.reason.split(":")[0] for letter in kept] == ["no message"]
    letters(server, kept[0].id)
    assert server.broker.lpop(queue) == raw.encode()


def letters(server: Server, retry: str = "") -> list[DeadLetter]:
    """The output of `make dead`."""
    found: list[DeadLetter] = []

    def decide(letter: DeadLetter) -> Action:
        found.append(letter)
        return "retry" if letter.id == retry else "keep"

    RedisDeadLetters().each(app(server), decide)
    return found


def app(server: Server, **settings: Any) -> Celery:
    one = Kit("dead", set_as_current=False, broker=server.urls["CELERY_BROKER_URL"])
    one.conf.update(settings)
    return one


def test_where_nothing_can_be_set_aside_what_came_with_it_is_delivered(server: Server) -> None:
    """An error with one item does not affect the others of its batch, and the item is tried again."""
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, "before")
        server.broker.lpush(queue, "no message")
        publish(one, queue, "after")
        held = server.broker.rename(DEAD, "held") if server.broker.exists(DEAD) else None
        server.broker.set(DEAD, "no hash")
        try:
            taken = Taken(one, [queue], prefetch=10)
            taken.settle()
            assert taken.bodies() == ["before", "after"]
        finally:
            server.broker.delete(DEAD)
            if held:
                server.broker.rename("held", DEAD)
    RedisDeadLetters().prepare(app(server, task_queues=[direct(queue)]))
    assert [letter.queue for letter in letters(server)].count(queue) == 1
    assert not server.broker.exists(f"{queue}.malformed")


@pytest.mark.parametrize("prefix", ["", "mine:"])
def test_what_a_killed_worker_had_half_set_aside_is_seen(server: Server, prefix: str) -> None:
    """Items that were being moved are processed again: by a worker that starts, and by a command that lists dead letters."""
    (queue,) = names()
    one = app(server, task_queues=[direct(queue)], broker_transport_options={"global_keyprefix": prefix})
    for number in range(250):
        server.broker.lpush(f"{prefix}{queue}.malformed", f"no message {number}")
    server.broker.lpush(f"{prefix}{queue}\x06\x163.malformed", "urgent")
    found: list[DeadLetter] = []

    def decide(letter: DeadLetter) -> Action:
        found.append(letter)
        return "drop" if letter.queue == queue else "keep"

    RedisDeadLetters().each(one, decide)
    assert [letter.queue for letter in found].count(queue) == 251
    assert not server.broker.keys(f"{prefix}{queue}*")


def test_a_record_that_nobody_can_read_keeps_no_other_from_being_seen(server: Server) -> None:
    """Every record among the dead letters is listed, and can be dropped."""
    for record in ("no JSON", "[]", '{"letter": {}, "item": ""}', '{"letter": {"more": 1}}', b"\xff"):
        server.broker.hset(DEAD, f"odd-{hash(record)}", record)
    odd = [letter for letter in letters(server) if letter.id.startswith("odd-")]
    assert len(odd) == 5 and all(letter.reason.startswith("its record cannot be read") for letter in odd)
    RedisDeadLetters().each(app(server), lambda letter: "drop" if letter.id.startswith("odd-") else "keep")
    assert not [letter for letter in letters(server) if letter.id.startswith("odd-")]


def test_a_record_of_an_earlier_version_is_sent_back(server: Server) -> None:
    """It has six fields; that of a later one may have more."""
    (queue,) = names()
    letter: dict[str, object] = {"task": "t", "queue": queue, "when": "2026", "deliveries": 21}
    letter["reason"] = "delivered 20 times, and no worker lived to end it"
    for name, more in ((f"{queue}-earlier", {}), (f"{queue}-later", {"kind": "later", "more": [1]})):
        record = {"letter": {"id": name, **letter, **more}, "item": json.dumps({"of": name})}
        server.broker.hset(DEAD, name, json.dumps(record))
    assert {one.kind for one in letters(server) if one.queue == queue} == {"poison", "later"}
    RedisDeadLetters().each(app(server), lambda one: "retry" if one.queue == queue else "keep")
    sent: Any = server.broker.lrange(queue, 0, -1)
    assert {json.loads(one)["of"] for one in sent} == {f"{queue}-earlier", f"{queue}-later"}
    assert not [one for one in letters(server) if one.queue == queue]


@pytest.mark.parametrize("body", [b'"\xff"', b"1" * 5_000])
def test_a_message_that_lua_reads_and_python_does_not_is_acknowledged(server: Server, body: bytes) -> None:
    """A dead letter is not delivered again."""
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, "before")
        raw: Any = server.broker.lpop(queue)
        server.broker.lpush(queue, raw.replace(b'{"body": ', b'{"odd": %s, "body": ' % body, 1))
        taken = Taken(one, [queue], prefetch=10)
        taken.settle()
        assert not taken.messages
        taken.drain(lambda: not unacknowledged(server))
    assert [letter.queue for letter in letters(server)].count(queue) == 1


def test_a_message_may_look_like_anything_inside(server: Server) -> None:
    """Its tag is found by position, whatever its body and headers contain."""
    (queue,) = names()
    tricky = {"properties": {"delivery_tag": "no", "delivery_info": {}}, "text": '"properties": {"delivery_tag": "no"}'}
    with connection(server) as one:
        publish(one, queue, tricky, headers={"h": tricky, "long": "x" * 10_000})
        publish(one, queue, tricky, headers={"h": tricky}, correlation_id="x" * 5_000)
        taken = Taken(one, [queue], prefetch=2)
        taken.settle()
        assert taken.bodies() == [tricky, tricky]
        assert all(server.broker.hexists("unacked", message.delivery_tag) for message in taken.messages)


def test_a_rejected_message_comes_back_or_goes(server: Server) -> None:
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, "again", "gone")
        taken = Taken(one, [queue], prefetch=1)
        taken.settle()
        taken.messages[0].reject(requeue=True)
        taken.drain(lambda: len(taken.messages) == 2)
        assert sorted(taken.bodies()) in (["again", "again"], ["again", "gone"])
        for number in range(1, 3):
            taken.drain(partial(taken.has, number + 1))
            taken.messages[number].reject()
        taken.settle()
        assert unacknowledged(server) == 0 and server.broker.llen(queue) == 0


def test_a_cancelled_consumer_keeps_nothing_that_it_was_not_given(server: Server) -> None:
    """Prefetched messages are requeued at once, in order: a worker that stops may still have to finish a long task."""
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, *range(10))
        taken = Taken(one, [queue], prefetch=10)
        fetcher = taken.channel.fetcher
        taken.then = lambda _: taken.consumer.qos(prefetch_count=2)
        taken.settle()
        assert taken.bodies() == [0, 1] and len(fetcher.ready) == 8
        taken.consumer.cancel()
        assert [json.loads(raw)["properties"] is not None for raw in server.broker.lrange(queue, 0, -1)] == [True] * 8
        assert unacknowledged(server) == 2
        again = Taken(one, [queue], prefetch=10)
        again.settle()
        assert again.bodies() == list(range(2, 10))


def test_a_closed_channel_gives_back_what_is_not_acknowledged(server: Server) -> None:
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, "a", "b", "c")
        taken = Taken(one, [queue], prefetch=3)
        taken.settle()
        taken.messages[1].ack()
    assert server.broker.llen(queue) == 2 and unacknowledged(server) == 0


def test_an_acknowledgement_after_the_end_counts(server: Server) -> None:
    """Such as that of a task that ends while its worker stops, when no loop runs that would send it."""
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, "a")
        taken = Taken(one, [queue])
        taken.settle()
        taken.consumer.cancel()
        taken.messages[0].ack()
        assert unacknowledged(server) == 0


def test_queues_are_added_and_cancelled_while_it_consumes(server: Server) -> None:
    first, second = names(2)
    with connection(server) as one:
        taken = Taken(one, [first], prefetch=10)
        publish(one, first, 1)
        publish(one, second, 2)
        taken.settle()
        taken.consumer.add_queue(direct(second))
        taken.consumer.consume()
        taken.drain(lambda: taken.bodies() == [1, 2])
        taken.consumer.cancel_by_queue(first)
        publish(one, first, 3)
        publish(one, second, 4)
        taken.drain(lambda: len(taken.messages) == 3)
        taken.settle()
        assert taken.bodies() == [1, 2, 4] and server.broker.llen(first) == 1


def test_what_is_consumed_without_acknowledgements_is_not_recorded(server: Server) -> None:
    """Answers of remote control, events, results by rpc: their records would never be removed."""
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, "a")
        taken = Taken(one, [queue], no_ack=True)
        taken.drain(lambda: taken.messages)
        assert taken.channel.fetcher is None and unacknowledged(server) == 0


def test_a_key_prefix_is_kept(server: Server) -> None:
    (queue,) = names()
    with connection(server, global_keyprefix="mine:") as one:
        publish(one, queue, "a", "b")
        taken = Taken(one, [queue])
        taken.settle()
        assert taken.bodies() == ["a"] and unacknowledged(server, "mine:") == 1
        taken.messages[0].ack()
        taken.drain(lambda: len(taken.messages) == 2)
        taken.messages[1].ack()
        taken.drain(lambda: not unacknowledged(server, "mine:"))
    assert not server.broker.exists("unacked", queue)


def test_scripts_that_the_server_forgot_are_loaded_again(server: Server) -> None:
    (queue,) = names()
    with connection(server) as one:
        taken = Taken(one, [queue])
        taken.settle()
        server.broker.script_flush()
        publish(one, queue, "a")
        with pytest.raises(one.connection_errors, match="refused"):  # the worker's loop reconnects on these errors
            taken.drain(lambda: taken.messages)
        taken.drain(lambda: taken.messages)
        taken.messages[0].ack()
        taken.drain(lambda: not unacknowledged(server))


def test_acknowledgements_survive_a_lost_connection(server: Server) -> None:
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, *range(20))
        taken = Taken(one, [queue], prefetch=20)
        taken.settle()
        for message in taken.messages:
            message.ack()
        server.broker.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(one.connection_errors):
            taken.drain(lambda: not unacknowledged(server))
        taken.drain(lambda: not unacknowledged(server))
        assert server.broker.llen(queue) == 0


def test_a_server_without_tracking_is_used_as_plain_does(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    (queue,) = names()
    server.broker.acl_setuser(
        "limited", enabled=True, passwords=["+x"], keys="*", channels="*", categories=["+@all"], commands=["-client|tracking"]
    )
    url = server.urls["CELERY_BROKER_URL"].replace("//", "//limited:x@")
    with Connection(url, transport_options={"engine": "fast"}) as one:
        publish(one, queue, "a")
        taken = Taken(one, [queue])
        taken.drain(lambda: taken.messages)
        assert "does not work with this Redis" in caplog.text
        taken.messages[0].ack()
        assert unacknowledged(server) == 0


def test_no_limit_is_no_reason_to_take_all(server: Server) -> None:
    (queue,) = names()
    with connection(server) as one:
        publish(one, queue, *range(MOST + 50))
        taken = Taken(one, [queue], prefetch=0)
        taken.drain(lambda: len(taken.messages) == MOST + 50)


def test_an_answer_that_is_late_and_there_is_read(server: Server) -> None:
    """A delayed loop finds the answer in the socket, receives the messages, and goes on."""
    (queue,) = names()
    with connection(server) as one:
        taken = Taken(one, [queue])
        taken.settle()
        publish(one, queue, "late")
        fetcher = taken.channel.fetcher
        until("a request is on its way", lambda: (fetcher.turn(), fetcher.waits)[1], 10)
        until("its answer is there", lambda: b"delivery_tag" in fetcher.connection._sock.recv(65_536, MSG_PEEK), 10)
        fetcher._sent_at -= 60
        fetcher.turn()
        assert taken.bodies() == ["late"] and not fetcher.waits


def test_an_acknowledgement_outlives_its_connection(server: Server) -> None:
    """An acknowledgement that cannot be sent before a connection is lost is sent on the process' next connection."""
    (queue,) = names()
    with connection(server, socket_timeout=0.3) as one:
        publish(one, queue, "a")
        taken = Taken(one, [queue])
        taken.drain(lambda: taken.messages)
        server.broker.client_pause(1_500)  # milliseconds
        Transport.drop_idle()
        taken.messages[0].ack()
    with connection(server) as other:
        again = Taken(other, [queue])
        again.drain(lambda: not server.broker.hlen("unacked"))
        assert not again.messages


#: A worker that has dead-lettered an item again before its sender can do anything else.
AT_ONCE = "local item = redis.call('RPOP', KEYS[1]) if item then redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end return item"


@pytest.mark.parametrize("item", ["no message", '{"properties": {"delivery_tag": "t"}, "headers": {}}'], ids=["raw", "message"])
def test_an_item_that_is_dead_lettered_again_at_once_is_not_lost(server: Server, item: str) -> None:
    """Whoever sends it back removes the letter that it had, and never the next one."""
    (queue,) = names()
    record = json.dumps({"letter": asdict(DeadLetter("t", "", queue, "why", "2026", 1)), "item": item})
    over, worker = threading.Event(), server.broker.register_script(AT_ONCE)

    def work() -> None:
        while not over.is_set():
            worker([queue, DEAD], ["t", record])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        server.broker.hset(DEAD, "t", record)
        for _ in range(20):
            letters(server, "t")
            until("it is dead-lettered again", lambda: server.broker.hexists(DEAD, "t"), 5)
    finally:
        over.set()
        thread.join()
        server.broker.hdel(DEAD, "t")
