"""Results as messages to the process that sent the task, without a results server. Only that process can read them."""

from collections.abc import Callable, Iterator
from functools import partial
from threading import Event, Lock
from typing import TYPE_CHECKING, Protocol, cast

from celery._state import task_join_will_block  # type: ignore[attr-defined]  # its stubs lack it
from celery.states import READY_STATES
from kombu import Queue
from kombu.common import maybe_declare
from kombu.utils.uuid import uuid

from celery_kit import brokers
from celery_kit.base.capabilities import DOCS, Earlier, Limit
from celery_kit.base.types import Message, Options, ResultBackend
from celery_kit.fixes import needed, patched
from celery_kit.results.contract import Backend
from celery_kit.results.waits import listen, listen_again

if TYPE_CHECKING:
    from kombu import Producer
    from upstream.celery_results import RpcConsumer as CelerysConsumer

    from celery_kit.base.choices import Choices
    from celery_kit.base.types import Headers
else:
    from celery.backends import rpc

    CelerysConsumer = patched(rpc.ResultConsumer, "abandoned_waits", "read_timeouts")

NO_CHORDS = Limit("cannot", "sending a chord raises NotImplementedError", f"{DOCS}/userguide/canvas.html#chords")
CHORD_IN_A_TASK = Limit(
    "cannot", "the task fails with NotImplementedError: its replacement would be a chord", NO_CHORDS.reference
)
REPLY_TO_THE_WORKER = Limit(
    "cannot",
    "the replacement runs, but its value goes to the worker that sent it: the first sender waits for it in vain",
    "seen by this test; celery/canvas.py, Signature.freeze: reply_to",
)


class ResultConsumer(CelerysConsumer):
    """Celery's result consumer, except that its start wakes a waiting drainer, and that one thread at a time reads its
    connection.

    The drainer of greenlets begins before the consumer has started; Celery's would sleep for a second then. Several threads may
    wait for results of tasks that one of them has sent.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self._started, self._starts, self._reads = Event(), Lock(), Lock()

    def start(self, initial_task_id: str, **options: object) -> None:
        """Connect and consume. Raises the transport's errors; the next call tries again."""
        with self._starts:
            if self._started.is_set():
                return
            try:
                super().start(initial_task_id, **options)
            except BaseException:
                self._consumer = None  # otherwise the next call would take it for started
                raise
            self._started.set()

    def drain_events(self, timeout: float | None = None) -> None:
        """Read results, for `timeout` seconds at most, or wait as long for the thread that reads them."""
        if not self._started.wait(timeout or 0):
            return
        if self._reads.acquire(blocking=False):
            try:
                super().drain_events(timeout)
            finally:
                self._reads.release()
        elif self._reads.acquire(timeout=-1 if timeout is None else timeout):
            self._reads.release()  # the other thread may have read a result that this one waits for

    def _reconnect(self) -> None:
        if self.backend.result_consumer is self:  # in a forked child, a greenlet may still hold the parent's consumer
            super()._reconnect()


class RPCBackend(ResultBackend, Protocol):
    """celery.backends.rpc.RPCBackend."""

    #: The queue for replies, as a function of a channel, and what makes it.
    binding: Callable[[object], Queue]
    Queue: Callable[..., Queue]
    _slurp_from_queue: Callable[..., Iterator[Message]]

    def _after_fork(self) -> None: ...


def adapt(backend: RPCBackend) -> None:
    """Have the queue for replies bound by :func:`_bind` when a task is sent, and no reply dropped when the queue is polled."""
    backend.oid = backend.app.thread_oid  # set now, because Celery would set it at its first use, maybe in another thread
    if needed("waiting for results of rpc"):
        listen(backend, ResultConsumer)
    backend.on_task_call = lambda producer, task_id: _bind(backend, producer)
    if len(backend.app.connection_for_read().alt) > 1:
        backend.Queue = partial(_copied, backend.Queue)
    if needed("polled_results"):
        backend._slurp_from_queue = final_last(backend._slurp_from_queue)


def _copied(kind: Callable[..., Queue], name: str, exchange: object, key: str, *, expires: float, **_: object) -> Queue:
    """The queue for replies where there are several brokers: with a copy on each node of a cluster.

    Celery's is on one node alone. While that is down, the queue can neither be used nor declared on another.
    """
    return kind(name, exchange, key, durable=True, expires=expires, queue_arguments={"x-queue-type": "quorum"})


def final_last(slurp: Callable[..., Iterator[Message]]) -> Callable[..., Iterator[Message]]:
    """`slurp`, which takes all messages from the queue for replies, with final states last: fix `polled_results`.

    To look up a state, Celery takes all messages, keeps the last one about the task, drops those before it, and requeues the
    last one unless its state is final. Transports that cannot requeue at the front (Redis, memory) put it at the end. If the
    task ends in between, STARTED then comes after SUCCESS, and the next look-up drops the result.
    """
    return lambda *args, **options: iter(sorted(slurp(*args, **options), key=_is_final))


def _is_final(message: Message) -> bool:
    return cast("Headers", message.payload)["status"] in READY_STATES


def close_inherited(backend: RPCBackend) -> None:
    """In a forked child: get replies by a queue of its own. Replies to the parent stay in the parent's queue."""
    brokers.close_inherited(backend.result_consumer._connection)
    listen_again(backend)
    backend._after_fork()  # Celery's
    backend.oid = uuid()  # the app's own id is the queue of the tasks that this process sends from now on


def _bind(backend: RPCBackend, producer: "Producer") -> None:
    """Declare the queue for replies, like Celery, but with a limited wait if the broker is unavailable
    (celery/backends/rpc.py).
    """
    if task_join_will_block():
        return
    if with_retries := getattr(producer, "with_retries", None):
        with_retries(lambda: maybe_declare(backend.binding(producer.channel)))
    else:  # beat's producer, or one that the user made
        maybe_declare(backend.binding(producer.channel), retry=True, interval_start=0, interval_step=1, max_retries=3)


def settings(_: "Choices") -> Options:
    """Celery's settings for this backend."""
    return {
        # Durable, so that a restart of the broker does not lose a reply.
        "result_persistent": True,
    }


backend = Backend(
    name="rpc",
    schemes=("rpc",),
    url=lambda _environ, _broker: "rpc://",
    settings=settings,
    has_server=False,
    read_elsewhere=False,
    chords=False,
    thread_safe=False,  # its queue for replies belongs to the thread that made it
    adapt=adapt,
    close_inherited=close_inherited,
    limits={
        "result_is_read_elsewhere": Limit(
            "cannot",
            "another process sees PENDING; the command line refuses and says why",
            f"{DOCS}/userguide/tasks.html#rpc-result-backend-rabbitmq-qpid",
        ),
        "result_compression": Limit(
            "cannot",
            "results go uncompressed, and the worker's log says so once",
            f"{DOCS}/userguide/configuration.html#result-compression",
        ),
        "workflow_runs": NO_CHORDS,
        "chord": NO_CHORDS,
        **dict.fromkeys(
            (
                "chord_of_one",
                "chord_of_many",
                "chord_in_a_chord",
                "chord_of_chains",
                "chord_error",
                "chord_errback",
                "group_in_a_chain",
                "two_groups_in_a_chain",
            ),
            NO_CHORDS,
        ),
        "replace_by_a_group": CHORD_IN_A_TASK,
        "replace_by_a_chord": CHORD_IN_A_TASK,
        "replace": REPLY_TO_THE_WORKER,
        "replace_by_a_chain": REPLY_TO_THE_WORKER,
        "collect": Limit(
            "cannot",
            "the callback runs, but its value goes to the worker that sent it: collect() waits for it in vain",
            "seen by this test; celery/canvas.py, Signature.freeze: reply_to",
        ),
        "group_result_is_restored": Limit(
            "cannot", "saving a group's result raises NotImplementedError", "celery/backends/rpc.py, save_group"
        ),
        "children": Limit(
            "differently",
            "the children's ids come back; their values go to the worker that sent them, so the first sender sees PENDING",
            "celery/backends/rpc.py, destination_for: a reply goes to the queue of the task's own sender",
        ),
    },
    earlier=(
        Earlier(
            "chain_stops_at_an_error",
            {"celery": "<5.7"},
            Limit(
                "differently",
                "the failed task's own `state` may stay PENDING, if its result arrived while the chain's was waited for",
                "celery/backends/rpc.py 5.7.0, get_task_meta: it looks for what has arrived",
            ),
        ),
        Earlier(
            "forget",
            {"celery": "<5.7"},
            Limit("cannot", "forget() raises NotImplementedError", "celery/backends/rpc.py 5.7.0: its _forget is new"),
        ),
    ),
)
