"""Messages with an ETA wait on the Redis server, and no worker holds them. celery_kit/brokers/redis/delayed.py"""

import json
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from kombu import Connection as PlainConnection

from celery_kit import Kit
from celery_kit.base.messages import DEAD
from celery_kit.brokers.redis import delayed, fetch
from celery_kit.brokers.redis.delayed import DELAYED, MOVERS
from celery_kit.brokers.redis.facts import facts
from celery_kit.produce.alike import Call
from celery_kit.produce.bulk import Sender
from tests.engine.rig import producer, send
from tests.engine.test_fetch import Taken, connection, names, publish
from tests.harness.servers import Server
from tests.harness.waiting import until

#: Seconds that a wrong clock is behind.
WRONG = 3_600


@pytest.fixture(autouse=True)
def forgotten(server: Server) -> None:
    """No worker has left its sign, and nothing waits."""
    server.broker.delete(DELAYED, MOVERS)
    delayed._say.cache_clear()


def eta(seconds: float) -> dict[str, Any]:
    return {"eta": (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()}


def waiting(server: Server) -> int:
    return int(server.broker.zcard(DELAYED))


def members(server: Server) -> list[tuple[str, float]]:
    """What waits, and when it is due, in seconds since 1970."""
    found: Any = server.broker.zrange(DELAYED, 0, -1, withscores=True)
    return [(member.decode(), score / 1_000) for member, score in found]


def all_due(server: Server) -> bool:
    return all(due < time.time() for _, due in members(server))


def signed(server: Server) -> None:
    """As if a worker had just fetched."""
    server.broker.set(MOVERS, 1, ex=60)


def one_argument(number: int) -> int:
    return number


def kit(server: Server) -> Kit:
    app = Kit("delays", set_as_current=False)
    app.conf.update(broker_url=server.urls["CELERY_BROKER_URL"], result_backend=server.urls["CELERY_RESULT_BACKEND"])
    return app


def test_a_message_waits_on_the_server_until_it_is_due(server: Server) -> None:
    """Nobody holds it meanwhile; what waits is the whole message, as its list will hold it, and the list's name."""
    (queue,) = names()
    with connection(server) as one:
        taken = Taken(one, [queue])
        taken.settle()
        due = time.time() + 1
        publish(one, queue, "a", headers={"eta": datetime.fromtimestamp(due, UTC).isoformat()})
        ((member, score),) = members(server)
        to, message = member.split("\n")
        assert to == queue and json.loads(message)["headers"]["eta"] and 0 <= score - due < 0.002
        assert (server.broker.llen(queue), server.broker.hlen("unacked")) == (0, 0)
        taken.drain(lambda: taken.messages)
        assert time.time() >= due and not waiting(server)
        taken.messages[0].ack()


def test_delayed_messages_keep_their_priority(server: Server) -> None:
    """Those that are due together are taken by priority, together with those that were not delayed."""
    (queue,) = names()
    signed(server)
    with connection(server) as one:
        soon = eta(3)
        for priority in (0, 9, 3, 6):
            publish(one, queue, priority, priority=priority, headers=soon)
        publish(one, queue, "high", priority=9)
        publish(one, queue, "low")
        until("they are due", lambda: all_due(server))
        taken = Taken(one, [queue], prefetch=10)
        taken.drain(lambda: taken.has(6))
        assert taken.bodies() == ["high", 9, 6, 3, "low", 0]
        for message in taken.messages:
            message.ack()


def test_many_are_moved_by_several_fetches(server: Server) -> None:
    (queue,) = names()
    signed(server)
    with connection(server) as one:
        publish(one, queue, *range(250), headers=eta(8))
        assert waiting(server) == 250
        taken = Taken(one, [queue], prefetch=1)
        until("they are due", lambda: all_due(server))
        taken.drain(lambda: taken.messages)
        assert waiting(server) >= 100
        taken.drain(lambda: not waiting(server))
        assert server.broker.llen(queue) + server.broker.hlen("unacked") == 250
        taken.channel.close()
        server.broker.delete(queue)


def test_a_worker_that_takes_nothing_moves_what_is_due(server: Server) -> None:
    """Its window is full: others, plain Celery's among them, have the tasks of their queues in time."""
    queue, others = names(2)
    with connection(server) as one:
        publish(one, queue, "a")
        taken = Taken(one, [queue], prefetch=1)
        taken.drain(lambda: taken.messages)
        publish(one, others, "b", headers=eta(0.5))
        taken.drain(lambda: server.broker.llen(others))
        assert not waiting(server)
        taken.messages[0].ack()


def test_an_earlier_one_wakes_an_idle_worker(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows of one that is due in an hour, and is notified of one that is due before."""
    monkeypatch.setattr(fetch, "LOOK_AGAIN", 3_600)  # it asks only if it is notified
    (queue,) = names()
    with connection(server) as one:
        signed(server)
        publish(one, queue, "late", headers=eta(3_600))
        taken = Taken(one, [queue])
        taken.settle()
        publish(one, queue, "soon", headers=eta(0.5))
        taken.drain(lambda: taken.messages)
        assert taken.bodies() == ["soon"]
        taken.messages[0].ack()


def test_without_a_worker_of_the_kit_a_message_goes_the_usual_way(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Plain Celery's workers hold it until its ETA. The log says so, once."""
    (queue,) = names()
    with connection(server) as one, caplog.at_level(logging.WARNING):
        publish(one, queue, "a", "b", headers=eta(60))
        assert (waiting(server), server.broker.llen(queue)) == (0, 2)
        assert caplog.text.count("are sent to their queues at once, as Celery does: no worker") == 1
        server.broker.delete(queue)


def test_on_the_plain_engine_a_message_goes_the_usual_way(server: Server) -> None:
    (queue,) = names()
    signed(server)
    with connection(server, "plain") as one:
        publish(one, queue, "a", headers=eta(60))
        assert (waiting(server), server.broker.llen(queue)) == (0, 1)
        server.broker.delete(queue)


def test_an_eta_of_the_past_does_not_wait(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that is in the future by the sender's clock only."""
    (queue,) = names()
    signed(server)
    with connection(server) as one:
        publish(one, queue, "a", headers=eta(-1))
        monkeypatch.setattr(delayed, "time", lambda: time.time() - WRONG)
        publish(one, queue, "b", headers=eta(-1))
        assert (waiting(server), server.broker.llen(queue)) == (0, 2)
        server.broker.delete(queue)


def test_a_worker_does_not_hold_what_a_plain_producer_sends(server: Server) -> None:
    """It has the message wait on the server, and its window is free for others."""
    (queue,) = names()
    with connection(server) as one, PlainConnection(server.urls["CELERY_BROKER_URL"]) as plain:
        due = time.time() + 2
        publish(plain, queue, "late", priority=9, headers={"eta": datetime.fromtimestamp(due, UTC).isoformat()})  # type: ignore[arg-type]
        taken = Taken(one, [queue], prefetch=1)
        taken.drain(lambda: waiting(server) == 1)
        assert (server.broker.hlen("unacked"), server.broker.zcard("unacked_index")) == (0, 0)
        publish(one, queue, "now")
        taken.drain(lambda: taken.messages)
        assert taken.bodies() == ["now"]
        taken.messages[0].ack()
        taken.drain(lambda: taken.has(2))
        assert time.time() >= due
        taken.messages[1].ack()


def test_a_worker_whose_clock_is_behind_gets_it_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its clock the time has not come. It does not send it to the server again and again, but holds it, as Celery does."""
    (queue,) = names()
    with connection(server) as one:
        signed(server)
        publish(one, queue, "a", headers=eta(0.3))
        monkeypatch.setattr(delayed, "time", lambda: time.time() - WRONG)
        taken = Taken(one, [queue])
        taken.drain(lambda: taken.messages)
        assert (waiting(server), server.broker.hlen("unacked")) == (0, 1)
        taken.messages[0].ack()


def test_a_message_that_was_restored_meanwhile_is_left_alone(server: Server) -> None:
    """It is in its list again: its next receiver decides."""
    (queue,) = names()
    with connection(server) as one:
        message = {"headers": eta(60), "properties": {"delivery_tag": uuid4().hex}}
        assert delayed.park(one.default_channel, queue, message, json.dumps(message).encode())  # type: ignore[arg-type]
        assert not waiting(server)


def test_a_key_prefix_is_kept(server: Server) -> None:
    (queue,) = names()
    with connection(server, global_keyprefix="own:") as one:
        taken = Taken(one, [queue])
        taken.settle()
        publish(one, queue, "a", headers=eta(0.5))
        assert (waiting(server), server.broker.zcard(f"own:{DELAYED}")) == (0, 1)
        taken.drain(lambda: taken.messages)
        taken.messages[0].ack()


def test_what_is_no_message_holds_nobody_up(server: Server) -> None:
    """An item of somebody else's is dead-lettered; one whose queue is not a list stays."""
    queue, text = names(2)
    server.broker.set(text, "not a list")
    server.broker.zadd(DELAYED, {"junk": 1, f"{text}\n{{}}": 2})
    with connection(server) as one:
        signed(server)
        publish(one, queue, "a", headers=eta(0.2))
        taken = Taken(one, [queue])
        taken.drain(lambda: taken.messages)
        assert [member for member, _ in members(server)] == [f"{text}\n{{}}"]
        (letter,) = [record for record in server.broker.hvals(DEAD) if b'"junk"' in record]
        assert queue in json.loads(letter)["list"]
        taken.messages[0].ack()
    server.broker.delete(DEAD, DELAYED, text)


def test_many_messages_at_once_wait_too(server: Server) -> None:
    """`send_many` publishes them by one pipeline, with one ETA for all, or one each."""
    (queue,) = names()
    app = kit(server)
    some = app.task(name="delayed.some")(one_argument)
    signed(server)
    with app.producer_or_acquire() as one:
        ids = Sender(app, some, {"queue": queue, "countdown": 60}, one).send([Call((number,)) for number in range(20)])
        each = [Call((number,), {}, {"countdown": 100 + number}) for number in range(5)]
        ids += Sender(app, some, {"queue": queue}, one).send([*each, Call((5,))])
    found = {json.loads(member.split("\n")[1])["headers"]["id"]: due - time.time() for member, due in members(server)}
    assert set(found) == set(ids[:25]) and server.broker.llen(queue) == 1
    assert all(55 < found[one] <= 60 for one in ids[:20]) and all(95 < found[one] <= 105 for one in ids[20:25])
    server.broker.delete(queue)


def test_the_state_of_the_server_tells_what_waits(server: Server) -> None:
    """How many, and when the next one is due; and that nobody moves those that are overdue, as `make doctor` reports."""
    (queue,) = names()
    app = kit(server)
    signed(server)
    with connection(server) as one:
        publish(one, queue, "a", "b", headers=eta(100))
        state = facts(app, one, {})
        assert any(note.startswith("2 messages wait for their ETA, the next one is due in ") for note in state.notes)
        assert state.delayed == 2
        assert not any("no worker moves" in what for what, _ in state.faults)
        server.broker.zadd(DELAYED, {f"{queue}\n{{}}": (time.time() - 50) * 1_000})
        assert not any("no worker moves" in what for what, _ in facts(app, one, {}).faults)
        server.broker.delete(MOVERS)
        assert any("3 messages wait for their ETA, the first since " in what for what, _ in facts(app, one, {}).faults)


def test_a_task_that_was_delayed_is_as_old_as_its_eta(server: Server) -> None:
    """The age of the next message of a queue, which an alert may watch, does not count the delay."""
    (queue,) = names()
    app = kit(server)
    with connection(server) as one:
        publish(one, queue, "a", headers={**eta(-5), "sent": time.time() - 9_000})
        ages = {found.name: found.oldest for found in facts(app, one, {}).queues}
        assert 5 <= (ages[queue] or 0) < 9_000
    server.broker.delete(queue)


def test_plain_celery_holds_them(server: Server) -> None:
    """If this fails, Celery itself delays tasks on Redis: compare."""
    queue = uuid4().hex[:8]
    signed(server)
    send(producer(server), queue, 1, countdown=60)
    assert (waiting(server), server.broker.llen(queue)) == (0, 1)
    server.broker.delete(queue)
