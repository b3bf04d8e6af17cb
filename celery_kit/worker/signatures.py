"""Where messages are signed: a worker takes those whose signature holds, and none that was acknowledged before.

A redelivered message has the signature of its first delivery, so a signature counts as used once its message is acknowledged.
Used ones are noted in a store that all workers share, just before the acknowledgement, until they are too old anyway. With
group commit all of a group are noted by one round trip, and one question is about a message and those that wait behind it.
Without such a store, or while it is unavailable, the window alone limits how long a message can be sent again.

A message that its exchange has routed to several queues, or to each worker of a Broadcast, runs once for each of them.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from celery.exceptions import SecurityError
from celery.utils.log import get_logger

from celery_kit.base.types import Callback, Message

if TYPE_CHECKING:
    from celery_kit.base.signing import Signer

logger = get_logger(__name__)
#: The prefix of the store's keys.
PREFIX = "_celery-kit.signed."
#: Seconds that a note lasts longer than its signature: clocks differ.
MARGIN = 60.0
#: Seconds without a question after the store was unavailable, and how many notes wait for it at most.
PAUSE, MOST = 2.0, 100_000
#: Seconds for which the answer about a message that waits holds, and the number of such messages in one question.
FRESH, AHEAD = 1.0, 128

#: Messages that wait for a slot of the worker: their queues, and their signatures as in their headers.
Ahead: TypeAlias = Callable[[int], Iterable[tuple[str, str]]]


class Store(Protocol):
    """Keys that all workers share (celery_kit/results/redis/claims.py). Its methods raise its client's errors."""

    def are_there(self, keys: Sequence[str]) -> Sequence[bool]:
        """Whether there is each of these keys, by one round trip."""

    def note(self, keys: list[tuple[str, float]]) -> None:
        """Store keys, each for so many seconds, by one round trip."""


class Signatures:
    """The signatures of a worker's messages. `store`: None if the app has none."""

    def __init__(self, signer: "Signer", store: Store | None) -> None:
        self.signer, self.store = signer, store
        self._ended: deque[tuple[str, float]] = deque(maxlen=MOST)
        self._noted: set[str] = set()
        self._fresh: dict[str, float] = {}  # when those that wait were asked about, and had not been used
        self._ask_at = 0.0

    def refusal(self, message: Message) -> str | None:
        """Why a message is not let in; None if what decides was signed, not longer ago than the window."""
        headers: object = message.headers
        try:
            if not isinstance(headers, dict):
                raise SecurityError("it is not signed")
            if self.signer.accepts_body(message):
                return None
            stamp = self.signer.task(message)
            until = self.signer.until(stamp, headers)
            if time.time() > until:
                window = self.signer.window
                raise SecurityError(f"it was signed, or was due, more than {window:.0f} s ago (SECURITY_WINDOW)")
        except SecurityError as error:
            return f"signature refused: {error}"
        vars(message)["signature"] = stamp.nonce, until
        return None

    def was_used(self, message: Message, queue: str, ahead: Ahead = lambda _: ()) -> bool:
        """Whether a message of the queue with this signature was acknowledged. If not, it will be noted when this one is.

        `ahead(most)`: that many of the messages that wait behind it.
        """
        nonce, until = vars(message).get("signature") or ("", 0.0)
        if not self.store or not nonce:
            return False
        nonce = f"{nonce}.{queue}"
        if time.monotonic() >= self._ask_at:
            try:
                if self._is_there(self.store, nonce, ahead):
                    return True
            except Exception as error:  # tasks run, as they do while results cannot be stored
                self._wait(error)
        self._follow(message, nonce, until)
        return False

    def _is_there(self, store: Store, nonce: str, ahead: Ahead) -> bool:
        if self._fresh.pop(nonce, -FRESH) > time.monotonic() - FRESH:
            return False
        behind = [f"{words[1]}.{queue}" for queue, line in ahead(AHEAD) if len(words := line.split(" ")) > 1]
        there, *others = store.are_there([PREFIX + one for one in (nonce, *behind)])
        now = time.monotonic()  # a copy of a message is asked about again: its answer goes to the one that comes first
        self._fresh = {one: now for one, used in zip(behind, others, strict=True) if not used and one != nonce}
        return there

    def _follow(self, message: Message, nonce: str, until: float) -> None:
        celerys: Callback = message.ack_log_error

        def ack_log_error(*args: object, **options: object) -> object:
            if nonce in self._noted:
                self._noted.discard(nonce)
            else:
                self._ended.append((nonce, until))
                self._note()
                self._noted.discard(nonce)
            return celerys(*args, **options)

        message.ack_log_error = ack_log_error
        vars(message)["used"] = nonce, until

    def announce(self, acks: Iterable[Callable[[], None]]) -> None:
        """Note the signatures of a group by one round trip. `acks`: methods of requests, whose results are stored."""
        for ack in acks:
            message = getattr(getattr(ack, "__self__", None), "message", None)
            if used := getattr(message, "used", None):
                self._ended.append(used)
        if self._ended:
            self._note()

    def _note(self) -> None:
        """Note the signatures of all messages that are about to be acknowledged."""
        if time.monotonic() < self._ask_at or not self.store:
            return
        several: list[tuple[str, float]] = []
        try:
            while self._ended:
                several.append(self._ended.popleft())
        except IndexError:  # another thread was quicker
            pass
        now = time.time()
        try:
            self.store.note([(PREFIX + nonce, max(1.0, until - now) + MARGIN) for nonce, until in several])
            self._noted.update(nonce for nonce, _ in several)
        except Exception as error:  # such as a full memory: the messages are acknowledged nevertheless
            self._ended.extend(several)
            self._wait(error)

    def _wait(self, error: Exception) -> None:
        self._ask_at = time.monotonic() + PAUSE
        logger.error("messages that are sent again are not noticed, because their store is unavailable: %s", error)
