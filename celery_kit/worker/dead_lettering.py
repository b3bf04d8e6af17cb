"""Dead-lettering: a message that cannot be run is stored with the reason, never dropped.

A worker dead-letters a message that was delivered MAX_DELIVERIES times without being acknowledged, because it kills its
process; one that the gate does not let in (`celery_kit/base/gate.py`), cannot be decoded, has a content type that is not
accepted, or is not signed by a trusted key; a task that is not registered; one that makes the worker's own code fail, wherever;
and one that its task rejects without requeue. Plain Celery 5.7.0
logs and drops most of these, and some end its worker. The messages of tasks that fail are stored beside them
(`celery_kit/worker/failed.py`). The broker's package decides where dead letters are stored
(`celery_kit/brokers/`), and `celery_kit/operate/look/dead.py` lists them and sends them back.
"""

import time
from collections.abc import Callable, Iterable

from celery import Celery, bootsteps
from celery.exceptions import WorkerLostError
from celery.utils.log import get_logger
from kombu import Queue
from kombu.exceptions import OperationalError

from celery_kit import brokers
from celery_kit.base import security
from celery_kit.base.choices import max_deliveries
from celery_kit.base.gate import MOST_NUMBER, refusal, refuse_payload
from celery_kit.base.messages import QUEUE, UNREADABLE, earlier, plain
from celery_kit.base.refusals import refuse
from celery_kit.base.types import Callback, Message, WorkerConsumer, WorkerRequest
from celery_kit.base.versions import command
from celery_kit.brokers.contract import REPLAYED, DeadLetter, moment, name_of
from celery_kit.engine.commit import commit
from celery_kit.fixes import needed
from celery_kit.worker.signatures import Signatures

logger = get_logger(__name__)
#: AMQP reply codes that a later declaration may not get: the queue's node is down, or another connection holds it exclusively.
#: A worker that gets only these for so many seconds exits.
PASSING, PASSING_SECONDS = (404, 405), 60.0
#: The last characters of a traceback that are stored: on RabbitMQ, a message's headers are one frame of 128 KB at most.
MOST_TRACEBACK = 16_000
#: Characters of the id and of the name of a task that a letter has.
MOST_NAME = 255


class DeadLettering(bootsteps.StartStopStep):
    """Store the messages that the consumer would drop. Celery's handlers still log them, store a result and send signals."""

    requires = ("celery.worker.consumer.connection:Connection",)
    #: Those of the worker's messages; None where they are not signed.
    signatures: Signatures | None = None

    def __init__(self, parent: WorkerConsumer, **options: object) -> None:
        super().__init__(parent, **options)
        broker = brokers.room(parent.app.conf.broker_read_url)
        letters = broker.letters() if broker and needed("dead letters") else None
        self.enabled = letters is not None
        if broker is None or letters is None:  # the kit has no module for this broker, or was not written for this Celery
            if parent.app.conf.security_key:
                refuse("SECURITY_KEY: the kit checks no signatures on this broker, or with this Celery (docs/brokers.md)")
            logger.warning(
                "the kit stores no dead letters on this broker: messages that cannot be run are dropped (docs/brokers.md)"
            )
            return
        if broker.explain:
            handler = self.exiting(parent, broker.explain, parent.on_connection_error_after_connected)
            parent.on_connection_error_after_connected = handler
        self.limit = max_deliveries()
        signer = security.signer(parent.app)
        self.signatures = Signatures(signer, getattr(parent.app, "signature_store", None)) if signer else None
        commit.announce = self.signatures.announce if self.signatures else None
        self.letters, self.park = letters, broker.park
        parent.on_decode_error = self.storing_first(parent, parent.on_decode_error, "cannot be decoded")
        parent.on_unknown_message = self.storing_first(parent, parent.on_unknown_message, "is no task")
        parent.on_unknown_task = self.storing_first(parent, parent.on_unknown_task, "no such task")
        parent.on_invalid_task = self.storing_first(parent, parent.on_invalid_task, "is not accepted")
        parent.create_task_handler = self.guarded(parent, parent.create_task_handler)
        self.connection_errors = (*parent.connection_errors, *parent.channel_errors)
        # What a producer raises after its time limit. Celery's consumer, which sends as it starts (mingle), would exit for it
        # if the broker is lost again meanwhile.
        parent.connection_errors = (*parent.connection_errors, OperationalError)
        self.guard_the_pool(parent)

    def start(self, parent: WorkerConsumer) -> None:
        """Declare the place of the dead letters."""
        self.letters.prepare(parent.app)

    def exiting(
        self, parent: WorkerConsumer, explain: Callable[[BaseException], str | None], celerys: Callable[[Exception], None]
    ) -> Callable[[Exception], None]:
        """Celery's handler of a lost connection, which also exits the worker for an error that each retry would get again.

        An error about a queue that was added by remote control does not exit the worker: it stops consuming that queue.
        """
        first: dict[str, float] = {}
        queues = parent.app.amqp.queues
        own = set(queues.consume_from)

        def lost(error: Exception) -> None:
            why = explain(error)
            passing = why and getattr(error, "reply_code", None) in PASSING
            if why and (not passing or time.monotonic() - first.setdefault(why, time.monotonic()) > PASSING_SECONDS):
                added = [name for name, queue in queues.consume_from.items() if name not in own and _names(error, queue)]
                if not added:
                    refuse(why)
                queues.deselect(added)
                logger.error("%s is not consumed: %s", ", ".join(added), why)
            celerys(error)

        return lost

    def storing_first(self, parent: WorkerConsumer, celerys: Callback, reason: str) -> Callback:
        """Celery's handler of such messages, called after the message has been stored."""

        def handle(*given: object) -> None:
            message: Message = next(one for one in given if hasattr(one, "delivery_info"))  # type: ignore[assignment]
            errors = [str(error) for error in given if isinstance(error, Exception)]
            errors += [f"its headers cannot be decoded: {why}"] if (why := message.headers.get(UNREADABLE)) else []
            self.put(parent, message, ": ".join([reason, *errors]))
            try:
                celerys(*given)
            except self.connection_errors:
                raise
            except Exception:
                logger.exception("no result was stored for a dead-lettered message")

        return handle

    def guarded(
        self, parent: WorkerConsumer, celerys: Callable[..., Callable[[Message], object]]
    ) -> Callable[..., Callable[[Message], object]]:
        """Celery's factory of the handler of messages, which also dead-letters one that came too often or makes it fail."""

        def create_task_handler(*args: object, **options: object) -> Callable[[Message], object]:
            handle = celerys(*args, **options)
            fast_path = getattr(parent, "fast_path", None)  # celery_kit/engine/fast_path.py

            def take(message: Message) -> str | None:
                """Hand a message on that was let in. Returns why it is a dead letter after all; None if it is dealt with."""
                if message.headers.get("eta"):
                    refuse_payload(message)
                    if self.parked(parent, message):
                        return None
                    if self.was_used(parent, message):
                        return self.used(message)
                else:
                    if self.was_used(parent, message):
                        return self.used(message)
                    if fast_path is not None and fast_path(message):
                        return None
                    refuse_payload(message)
                handle(message)
                return None

            def on_task_received(message: Message) -> None:
                often = deliveries(message) > self.limit
                if often and not self.signatures:
                    return self.give_up(parent, message)
                try:
                    why = refusal(message) or (self.signatures.refusal(message) if self.signatures else None)
                    if often and not why:
                        return self.give_up(parent, message)
                    why = why or take(message)
                except self.connection_errors:
                    raise
                except Exception as error:
                    return self.failed(parent, message, error)
                return self.put(parent, message, why) if why else None

            return on_task_received

        return create_task_handler

    def was_used(self, parent: WorkerConsumer, message: Message) -> bool:
        """Whether a message with the same signature was acknowledged, where messages are signed."""
        if not self.signatures:
            return False
        queues = by_tag(parent)
        queue = message.delivery_info.get(QUEUE) or self.letters.queue_of(message, queues)
        waiting: Callable[[int], Iterable[tuple[str, str]]] | None = getattr(message.channel, "signatures_ahead", None)

        def ahead(most: int) -> Iterable[tuple[str, str]]:
            return ((queues.get(place, place), line) for place, line in waiting(most)) if waiting else ()

        return self.signatures.was_used(message, queue, ahead)

    def used(self, message: Message) -> str | None:
        """Why a message whose signature was used is a dead letter. None for one that the broker redelivers: it is acknowledged.

        Its acknowledgement was lost with the connection, after its task had ended.
        """
        if deliveries(message) == 1 and not message.delivery_info.get("redelivered"):
            return REPLAYED
        logger.warning("a redelivered message was acknowledged before: %s is not run again", message.headers.get("id"))
        message.ack_log_error(logger, self.connection_errors)
        return None

    def parked(self, parent: WorkerConsumer, message: Message) -> bool:
        """Whether a message that has arrived before its ETA waits in the broker now."""
        try:
            return self.park(parent.app, message, self.letters.queue_of(message, by_tag(parent)))
        except self.connection_errors:
            raise
        except Exception:
            logger.exception("a task with an ETA cannot wait in the broker: this worker holds it")
            return False

    def guard_the_pool(self, parent: WorkerConsumer) -> None:
        """Have an error of handing a task to the pool dead-letter its message, and give its slot of the pool back.

        Celery takes the slot first. If the pool is busy, it hands the task over when another one ends, far from its message.
        """
        worker = parent.controller
        celerys = worker._process_task

        def process_task(request: WorkerRequest) -> None:
            try:
                celerys(request)
            except self.connection_errors:
                raise
            except Exception as error:
                if release := getattr(worker, "_quick_release", None):
                    release()
                self.failed(parent, request.message, error)

        worker._process_task = process_task
        if parent.on_task_request == celerys:
            parent.on_task_request = process_task

    def failed(self, parent: WorkerConsumer, message: Message, error: Exception) -> None:
        """Dead-letter a message that has made the worker's own code fail, and forget its task."""
        state = parent.controller.state
        for request in [one for one in list(state.requests.values()) if one.message is message]:
            state.task_ready(request)
        logger.error("a message made its handler fail", exc_info=short(error))
        if not message.acknowledged:
            self.put(parent, message, f"makes its handler fail: {type(error).__name__}: {error}")

    def give_up(self, parent: WorkerConsumer, message: Message) -> None:
        """Dead-letter a message that was delivered too often, and store a failure as its task's result."""
        from celery.worker.request import Request  # only in workers

        reason = f"delivered {self.limit} times, and no worker lived to end it"
        try:
            request: WorkerRequest = Request(message, app=parent.app, hostname=parent.hostname)  # type: ignore[assignment]
            error = WorkerLostError(f"dead-lettered: {reason}")
            request.task.backend.mark_as_failure(request.id, error, request=request._context, store_result=request.store_errors)
        except Exception:  # the message is stored whatever it holds
            logger.exception("no result was stored for a dead-lettered message")
        self.put(parent, message, reason)

    def put(self, parent: WorkerConsumer, message: Message, reason: str) -> None:
        """Store a message and acknowledge it. Celery's handler may acknowledge or reject it again, which then does nothing."""
        letter = letter_of(message, self.letters.queue_of(message, by_tag(parent)), reason, worker=parent.hostname)
        try:
            self.letters.put(parent.app, message, letter)
            message.ack()
        except self.connection_errors:
            raise
        except Exception:  # it cannot be written again as it is: the broker itself may be able to move it
            logger.exception("a dead letter is rejected, because it cannot be written")
            message.reject_log_error(logger, self.connection_errors)
        message.ack = message.reject_log_error = lambda *_args, **_options: None
        logger.error(
            "dead-lettered: %s[%s] of queue %s: %s ('%s' lists it)",
            letter.task,
            letter.id,
            letter.queue,
            reason,
            command("dead"),
        )


def deliveries(message: Message) -> int:
    """How often this message was delivered, including this time."""
    return earlier(message.headers) + 1


def short(error: Exception) -> Exception:
    """The error, without the thousand calls of a recursion."""
    if isinstance(error, RecursionError):
        error.__traceback__, error.__context__ = None, None
    return error


def by_tag(parent: WorkerConsumer) -> dict[str, str]:
    """The consumer's queues, by consumer tag."""
    consumer = parent.task_consumer
    return {tag: queue for queue, tag in consumer._active_tags.items()} if consumer else {}


def letter_of(
    message: Message, queue: str, reason: str, when: str = "", kind: str = "", worker: str = "", traceback: str = ""
) -> DeadLetter:
    """The dead letter of a message from `queue`. `when`: now, if it is not given."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    ids = headers.get("id"), message.properties.get("correlation_id")
    retries = headers.get("retries", 0 if "task" in headers else None)  # the kit's messages leave out a first try's
    return DeadLetter(
        id=plain(next((one for one in ids if one and isinstance(one, str)), "")[:MOST_NAME]) or name_of(_bytes(message.body)),
        task=_name(headers.get("task")),
        queue=queue,
        reason=plain(" ".join(reason.split())[:500])[:500],
        when=when or moment(),
        deliveries=deliveries(message),
        kind=kind,
        attempts=retries + 1 if isinstance(retries, int) and 0 <= retries < MOST_NUMBER else 0,
        worker=worker,
        traceback=plain(traceback[-MOST_TRACEBACK:], kept="\n\t")[-MOST_TRACEBACK:],
    )


def _names(error: Exception, queue: Queue) -> bool:
    """Whether an error's text names the queue or its exchange."""
    return any(f"'{name}'" in str(error) for name in (queue.name, queue.exchange.name))


def _name(task: object) -> str:
    """The name of a task as a letter has it: a text of its length at most."""
    return plain(task[:MOST_NAME] if isinstance(task, str) else "" if task is None else ascii(type(task).__name__))


def _bytes(body: object) -> bytes:
    return body if isinstance(body, bytes) else repr(body).encode()


def install(app: Celery) -> None:
    """Have every worker of `app` dead-letter the messages that it cannot run."""
    app.steps["consumer"].add(DeadLettering)
