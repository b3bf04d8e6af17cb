"""What cannot be run is set aside with its reason, and never dropped. `celery_kit/operate/look/dead.py` lists it, and sends it
back.

A worker sets aside: a message that came back MAX_DELIVERIES times without an end, because it kills its process; one that is no
message, or of a content type that is not accepted, or not signed by a trusted key; a task that no module has; one that
breaks the worker's own code; and what a task rejects without requeue. Plain Celery 5.7.0 logs and drops most of them, and some
end its worker. Where they are kept is the broker's affair (`celery_kit/brokers/`).
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha1
from importlib import import_module
from typing import Any

from celery import Celery, bootsteps
from celery.exceptions import WorkerLostError
from celery.utils.log import get_logger

from celery_kit import brokers
from celery_kit.base.choices import max_deliveries
from celery_kit.base.messages import DELIVERIES
from celery_kit.base.refusals import refuse
from celery_kit.brokers.contract import DeadLetter
from celery_kit.fixes import needed

logger = get_logger(__name__)
#: Answers to a declaration that can be another at the next try: a queue's node is down, somebody holds it alone. And for how
#: long they are waited for, in seconds: a worker tries again at once.
PASSING, PASSING_SECONDS = (404, 405), 60.0
#: What a message of the wrong shape raises in Celery's own code, beside what Celery itself catches.
OF_THE_MESSAGE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


class SetAside(bootsteps.StartStopStep):
    """Take what the consumer would drop. Celery's own handlers still log it, tell the result backend and send their signals."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        broker = brokers.room(parent.app.conf.broker_read_url)
        letters = broker.dead_letters if broker and needed("dead letters") else None
        self.enabled = letters is not None
        if broker is None or letters is None:  # one that the kit has no room for, or another Celery than it knows
            logger.warning("the kit keeps no dead letters on this broker: what cannot be run is dropped (docs/brokers.md)")
            return
        if broker.explain:
            lost = self.ending(parent, broker.explain, parent.on_connection_error_after_connected)
            parent.on_connection_error_after_connected = lost
        self.limit = max_deliveries()
        self.letters = letters
        parent.on_decode_error = self.before(parent, parent.on_decode_error, "cannot be decoded")
        parent.on_unknown_message = self.before(parent, parent.on_unknown_message, "is no task")
        parent.on_unknown_task = self.before(parent, parent.on_unknown_task, "no such task")
        parent.on_invalid_task = self.before(parent, parent.on_invalid_task, "is not accepted")
        parent.create_task_handler = self.guarded(parent, parent.create_task_handler)

    def start(self, parent: Any) -> None:
        self.letters.prepare(parent.app)

    def ending(
        self, parent: Any, explain: Callable[[BaseException], str | None], celerys: Callable[[Exception], None]
    ) -> Callable[[Exception], None]:
        """Celery's handler of a lost connection, but for an answer that would come again at each try: that ends the worker.

        A queue that somebody had it consume from meanwhile does not: the worker goes on without that.
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

    def before(self, parent: Any, celerys: Callable[..., Any], reason: str) -> Callable[..., Any]:
        """Celery's handler of such a message, called when it is safe."""

        def handle(*given: Any) -> None:
            message = next(one for one in given if hasattr(one, "delivery_info"))
            errors = [str(error) for error in given if isinstance(error, Exception)]
            self.put(parent, message, ": ".join([reason, *errors]))
            try:
                celerys(*given)
            except OF_THE_MESSAGE:
                logger.exception("the result backend was not told of a message that was set aside")

        return handle

    def guarded(self, parent: Any, celerys: Callable[..., Any]) -> Callable[..., Any]:
        """Celery's maker of the handler of all messages, with an eye on those that came back and on those that break it."""

        def create_task_handler(*args: Any, **options: Any) -> Callable[[Any], None]:
            handle = celerys(*args, **options)
            fast_path = getattr(parent, "fast_path", None)  # celery_kit/engine/fast_path.py

            def on_task_received(message: Any) -> None:
                if self.deliveries(message) > self.limit:
                    return self.give_up(parent, message)
                try:
                    if fast_path is None or not fast_path(message):
                        check(message)
                        handle(message)
                except OF_THE_MESSAGE as error:
                    state = parent.controller.state
                    mine = [request for request in list(state.requests.values()) if request.message is message]
                    if message.acknowledged or any(request in state.active_requests for request in mine):
                        raise  # the task runs, or ran: the error is another's
                    for request in mine:
                        state.task_ready(request)
                    logger.exception("a message broke its handler")
                    self.put(parent, message, f"breaks its handler: {type(error).__name__}: {error}")

            return on_task_received

        return create_task_handler

    @staticmethod
    def deliveries(message: Any) -> int:
        """How often this message was delivered, this time included."""
        count = message.headers.get(DELIVERIES) if isinstance(message.headers, dict) else None
        return count + 1 if isinstance(count, int) else 1

    def give_up(self, parent: Any, message: Any) -> None:
        """Set aside what came back too often, and tell whoever waits for it."""
        reason = f"delivered {self.limit} times, and no worker lived to end it"
        try:
            request: Any = import_module("celery.worker.request").Request(message, app=parent.app, hostname=parent.hostname)
            error = WorkerLostError(f"set aside: {reason}")
            request.task.backend.mark_as_failure(request.id, error, request=request._context, store_result=request.store_errors)
        except Exception:  # whatever the message holds, it is kept
            logger.exception("the result backend was not told of a message that is set aside")
        self.put(parent, message, reason)

    def put(self, parent: Any, message: Any, reason: str) -> None:
        """Keep a message and acknowledge it; Celery's handler may then do either as it likes."""
        consumer = parent.task_consumer
        by_tag = {tag: queue for queue, tag in consumer._active_tags.items()} if consumer else {}
        headers = message.headers if isinstance(message.headers, dict) else {}
        ids = (headers.get("id"), message.properties.get("correlation_id"))
        letter = DeadLetter(
            id=next((one for one in ids if one and isinstance(one, str)), sha1(_bytes(message.body)).hexdigest()[:12]),
            task=str(headers.get("task") or ""),
            queue=self.letters.queue_of(message, by_tag),
            reason=" ".join(reason.split())[:500],
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            deliveries=self.deliveries(message),
        )
        self.letters.put(parent.app, message, letter)
        message.ack()
        message.ack = message.reject_log_error = lambda *_args, **_options: None
        logger.error("set aside: %s[%s] of queue %s: %s ('make dead' lists it)", letter.task, letter.id, letter.queue, reason)


def _names(error: Exception, queue: Any) -> bool:
    return any(f"'{name}'" in str(error) for name in (queue.name, queue.exchange.name))


def check(message: Any) -> None:
    """Raise TypeError for parts of the wrong kind: Celery would fail on them in the pool, and some pools end."""
    limits = message.headers.get("timelimit") if isinstance(message.headers, dict) else None
    fit = isinstance(limits, list | tuple) and [isinstance(one, int | float | None) for one in limits] == [True, True]
    if limits is not None and not fit:
        # Celery fails on them once it has given the task a place in the pool, and never takes that back.
        raise TypeError("its time limits are no two numbers")
    try:
        body = message.payload
    except Exception:  # Celery's handler says what is wrong
        return
    for names in (message.headers, body):  # protocol 1: in the body
        if isinstance(names, dict) and "task" in names and not isinstance(names.get("id", ""), str):
            # The task would run, and its result could not be stored under such an id: some pools end.
            raise TypeError("its id is no text")
    if isinstance(body, list | tuple) and len(body) == 3:
        args, kwargs, embed = body
        if not (isinstance(args, list | tuple) and isinstance(kwargs, dict) and isinstance(embed or {}, dict)):
            raise TypeError("its body is no arguments, keyword arguments and callbacks")


def _bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else repr(body).encode()


def install(app: Celery) -> None:
    """Have every worker of `app` set aside what it cannot run."""
    app.steps["consumer"].add(SetAside)
