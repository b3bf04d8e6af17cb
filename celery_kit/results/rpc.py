"""Results as messages, back to the process that sent the task; no results server. Only that process can read them."""

from collections.abc import Callable, Iterator
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from celery._state import task_join_will_block  # type: ignore[attr-defined]  # its stubs lack it
from celery.backends import rpc
from celery.states import READY_STATES
from kombu.common import maybe_declare
from kombu.utils.uuid import uuid

from celery_kit import brokers
from celery_kit.base.capabilities import DOCS, Limit
from celery_kit.fixes import needed, patched
from celery_kit.results.contract import Backend
from celery_kit.results.waits import listen, listen_anew

if TYPE_CHECKING:
    from celery_kit.base.choices import Choices

CelerysConsumer: Any = patched(vars(rpc)["ResultConsumer"], "abandoned_waits")  # unknown to celery-types

NO_CHORDS = Limit("cannot", "sending a chord raises NotImplementedError", f"{DOCS}/userguide/canvas.html#chords")
CHORD_IN_A_TASK = Limit(
    "cannot", "the task fails with NotImplementedError: its replacement would be a chord", NO_CHORDS.reference
)
REPLY_TO_THE_WORKER = Limit(
    "cannot",
    "the replacement runs, but its value goes to the worker that sent it: the first sender waits for it in vain",
    "seen by this test; celery/canvas.py, Signature.freeze: reply_to",
)


class ResultConsumer(CelerysConsumer):  # type: ignore[misc]
    """Celery's, which is woken by its start: greenlets' drainer begins before that, and Celery's sleeps a second then. And one
    thread at a time reads its connection, where several wait for what one of them has sent.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._started, self._starts, self._reads = Event(), Lock(), Lock()

    def start(self, initial_task_id: str, **options: Any) -> None:
        with self._starts:
            if self._started.is_set():
                return
            try:
                super().start(initial_task_id, **options)
            except BaseException:
                self._consumer = None  # else the next one would take it for started
                raise
            self._started.set()

    def drain_events(self, timeout: float | None = None) -> None:
        if not self._started.wait(timeout or 0):
            return
        if self._reads.acquire(blocking=False):
            try:
                super().drain_events(timeout)
            finally:
                self._reads.release()
        elif self._reads.acquire(timeout=-1 if timeout is None else timeout):
            self._reads.release()  # what the other one has read may have been for this one

    def _reconnect(self) -> None:
        if self.backend.result_consumer is self:  # not where a greenlet has it from the process that this one was forked from
            super()._reconnect()


def adapt(backend: Any) -> None:
    """Have the queue for replies bound as below when a task is sent, and nothing thrown away when it is looked into."""
    backend.oid = backend.app.thread_oid  # now: Celery asks when it needs it first, which may be in another thread
    if needed("waiting for results of rpc"):
        listen(backend, ResultConsumer)
    backend.on_task_call = lambda producer, task_id: _bind(backend, producer)
    if needed("polled_results"):
        backend._slurp_from_queue = final_last(backend._slurp_from_queue)


def final_last(slurp: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`slurp`, which takes all messages from the queue for replies, with final states last: fix `polled_results`.

    To look up a state, Celery takes all messages, keeps the last about the task, drops those before it, and requeues that one
    unless it is final. Transports that cannot requeue at the front (Redis, memory) put it at the end: where the task ends in
    between, STARTED comes after SUCCESS from there on, and the next look drops the result.
    """
    return lambda *args, **options: iter(sorted(slurp(*args, **options), key=_is_final))


def _is_final(message: Any) -> bool:
    return message.payload["status"] in READY_STATES


def let_go(backend: Any) -> None:
    """Get replies by a queue of its own. What is on its way to the parent stays the parent's."""
    brokers.let_go(backend.result_consumer._connection)
    listen_anew(backend)
    backend._after_fork()  # Celery's
    backend.oid = uuid()  # the app's is for what this process sends


def _bind(backend: Any, producer: Any) -> None:
    """Have the queue for replies, as Celery has it, but not for ever where the broker is away (celery/backends/rpc.py)."""
    if task_join_will_block():
        return
    if hasattr(producer, "patiently"):
        producer.patiently(lambda: maybe_declare(backend.binding(producer.channel)))
    else:  # beat's, or one of the user's own
        maybe_declare(backend.binding(producer.channel), retry=True, interval_start=0, interval_step=1, max_retries=3)


def settings(_: "Choices") -> dict[str, Any]:
    return {
        # Durable, so that a restart of the broker does not lose an answer.
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
    thread_safe=False,  # its queue for replies is that of the thread which made it
    adapt=adapt,
    let_go=let_go,
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
)
