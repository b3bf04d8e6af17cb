"""Dead-lettering: a message that cannot be run is stored with the reason, never dropped.

A worker dead-letters a message that was delivered MAX_DELIVERIES times without being acknowledged, because it kills its
process; one that cannot be decoded, has a content type that is not accepted, or is not signed by a trusted key; a task that is
not registered; one that makes the worker's own code fail; and one that its task rejects without requeue. Plain Celery 5.7.0
logs and drops most of these, and some end its worker. The messages of tasks that fail are stored beside them
(`celery_kit/worker/failed.py`). The broker's package decides where dead letters are stored
(`celery_kit/brokers/`), and `celery_kit/operate/look/dead.py` lists them and sends them back.
"""

import time
from collections.abc import Callable

from celery import Celery, bootsteps
from celery.exceptions import WorkerLostError
from celery.utils.log import get_logger
from kombu import Queue

from celery_kit import brokers
from celery_kit.base.choices import max_deliveries
from celery_kit.base.messages import DELIVERIES
from celery_kit.base.refusals import refuse
from celery_kit.base.types import Callback, Message, WorkerConsumer, WorkerRequest
from celery_kit.base.versions import command
from celery_kit.brokers.contract import DeadLetter, moment, name_of
from celery_kit.fixes import needed

logger = get_logger(__name__)
#: AMQP reply codes that a later declaration may not get: the queue's node is down, or another connection holds it exclusively.
#: A worker that gets only these for so many seconds exits.
PASSING, PASSING_SECONDS = (404, 405), 60.0
#: The last characters of a traceback that are stored: on RabbitMQ, a message's headers are one frame of 128 KB at most.
MOST_TRACEBACK = 16_000
#: Errors that a message of the wrong shape raises in Celery's own code, besides those that Celery catches.
OF_THE_MESSAGE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


class DeadLettering(bootsteps.StartStopStep):
    """Store the messages that the consumer would drop. Celery's handlers still log them, store a result and send signals."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, parent: WorkerConsumer, **options: object) -> None:
        super().__init__(parent, **options)
        broker = brokers.room(parent.app.conf.broker_read_url)
        letters = broker.dead_letters if broker and needed("dead letters") else None
        self.enabled = letters is not None
        if broker is None or letters is None:  # the kit has no module for this broker, or was not written for this Celery
            logger.warning(
                "the kit stores no dead letters on this broker: messages that cannot be run are dropped (docs/brokers.md)"
            )
            return
        if broker.explain:
            handler = self.exiting(parent, broker.explain, parent.on_connection_error_after_connected)
            parent.on_connection_error_after_connected = handler
        self.limit = max_deliveries()
        self.letters = letters
        parent.on_decode_error = self.storing_first(parent, parent.on_decode_error, "cannot be decoded")
        parent.on_unknown_message = self.storing_first(parent, parent.on_unknown_message, "is no task")
        parent.on_unknown_task = self.storing_first(parent, parent.on_unknown_task, "no such task")
        parent.on_invalid_task = self.storing_first(parent, parent.on_invalid_task, "is not accepted")
        parent.create_task_handler = self.guarded(parent, parent.create_task_handler)

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
            passing = why and error.reply_code in PASSING  # type: ignore[attr-defined]
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
            self.put(parent, message, ": ".join([reason, *errors]))
            try:
                celerys(*given)
            except OF_THE_MESSAGE:
                logger.exception("no result was stored for a dead-lettered message")

        return handle

    def guarded(
        self, parent: WorkerConsumer, celerys: Callable[..., Callable[[Message], object]]
    ) -> Callable[..., Callable[[Message], object]]:
        """Celery's factory of the handler of messages, which also dead-letters one that came too often or makes it fail."""

        def create_task_handler(*args: object, **options: object) -> Callable[[Message], object]:
            handle = celerys(*args, **options)
            fast_path = getattr(parent, "fast_path", None)  # celery_kit/engine/fast_path.py

            def on_task_received(message: Message) -> None:
                if deliveries(message) > self.limit:
                    return self.give_up(parent, message)
                try:
                    if fast_path is None or not fast_path(message):
                        check(message)
                        handle(message)
                except OF_THE_MESSAGE as error:
                    state = parent.controller.state
                    mine = [request for request in list(state.requests.values()) if request.message is message]
                    if message.acknowledged or any(request in state.active_requests for request in mine):
                        raise  # the task runs or has run, so that the message is not what caused the error
                    for request in mine:
                        state.task_ready(request)
                    logger.exception("a message made its handler fail")
                    self.put(parent, message, f"makes its handler fail: {type(error).__name__}: {error}")

            return on_task_received

        return create_task_handler

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
        self.letters.put(parent.app, message, letter)
        message.ack()
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
    count = message.headers.get(DELIVERIES) if isinstance(message.headers, dict) else None
    return count + 1 if isinstance(count, int) else 1


def by_tag(parent: WorkerConsumer) -> dict[str, str]:
    """The consumer's queues, by consumer tag."""
    consumer = parent.task_consumer
    return {tag: queue for queue, tag in consumer._active_tags.items()} if consumer else {}


def letter_of(
    message: Message, queue: str, reason: str, when: str = "", kind: str = "", worker: str = "", traceback: str = ""
) -> DeadLetter:
    """The dead letter of a message from `queue`. `when`: now, if it is not given."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    ids, retries = (headers.get("id"), message.properties.get("correlation_id")), headers.get("retries")
    return DeadLetter(
        id=next((one for one in ids if one and isinstance(one, str)), name_of(_bytes(message.body))),
        task=str(headers.get("task") or ""),
        queue=queue,
        reason=printable(" ".join(reason.split()))[:500],
        when=when or moment(),
        deliveries=deliveries(message),
        kind=kind,
        attempts=retries + 1 if isinstance(retries, int) else 0,
        worker=worker,
        traceback=printable(traceback)[-MOST_TRACEBACK:],
    )


def printable(text: str) -> str:
    """A text without lone surrogates, which not every codec can write."""
    return text.encode("utf-8", "backslashreplace").decode()


def _names(error: Exception, queue: Queue) -> bool:
    """Whether an error's text names the queue or its exchange."""
    return any(f"'{name}'" in str(error) for name in (queue.name, queue.exchange.name))


def check(message: Message) -> None:
    """Raise TypeError for a part of the wrong type. Celery would fail on it in the pool, which ends some pools."""
    limits = message.headers.get("timelimit") if isinstance(message.headers, dict) else None
    fit = isinstance(limits, list | tuple) and [isinstance(one, int | float | None) for one in limits] == [True, True]
    if limits is not None and not fit:
        # Celery fails on them after it has taken a slot of the pool for the task, and never frees that slot.
        raise TypeError("its time limits are no two numbers")
    try:
        body = message.payload
    except Exception:  # Celery's handler reports what is wrong
        return
    for names in (message.headers, body):  # protocol 1: in the body
        if isinstance(names, dict) and "task" in names and not isinstance(names.get("id", ""), str):
            # The task would run, and storing its result under such an id would fail, which ends some pools.
            raise TypeError("its id is no text")
    if isinstance(body, list | tuple) and len(body) == 3:
        args, kwargs, embed = body
        if not (isinstance(args, list | tuple) and isinstance(kwargs, dict) and isinstance(embed or {}, dict)):
            raise TypeError("its body is no arguments, keyword arguments and callbacks")


def _bytes(body: object) -> bytes:
    return body if isinstance(body, bytes) else repr(body).encode()


def install(app: Celery) -> None:
    """Have every worker of `app` dead-letter the messages that it cannot run."""
    app.steps["consumer"].add(DeadLettering)
