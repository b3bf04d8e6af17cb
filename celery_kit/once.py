"""`@once`: a task whose effect happens once, however often its message is delivered. docs/once.md has its guarantees and
limits.

A run claims its key in the results store (or at ONCE_URL) before it begins. The claim is a lease that its process renews, so
that it lasts as long as the run, and expires soon after its process dies. A later run with the same key returns the first one's
result.
"""

import hashlib
import inspect
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, wraps
from typing import NoReturn, TypedDict, TypeVar, cast, overload

from celery import Celery, Task, current_task
from celery.exceptions import Ignore as MessageIsDone
from celery.exceptions import ImproperlyConfigured
from kombu.utils.json import dumps
from kombu.utils.uuid import uuid

from celery_kit import results
from celery_kit.base import processes
from celery_kit.base.refusals import refuse
from celery_kit.base.signals import worker_init
from celery_kit.base.types import AnyTask, Callback, Worker
from celery_kit.profile import once_url
from celery_kit.results import Backend
from celery_kit.results.redis.claims import Claims

logger = logging.getLogger(__name__)

#: The keys that have a name: the task's arguments, or the message. With "message" each send is a task of its own, and only
#: redeliveries of its message are duplicates.
KEYS = ("arguments", "message")
CLAIM, DONE = b"claim ", b"done "
#: Seconds until a step that the store did not answer is tried again.
AGAIN = 0.5
NO_STORE = "@once needs a store for its claims: BACKEND=redis, or ONCE_URL=redis://host:6379/1"

Function = TypeVar("Function", bound=Callable[..., object])
Value = TypeVar("Value")


@overload
def once(function: Function) -> Function: ...


@overload
def once(
    *, key: str | Callback = "arguments", expires: float = 86_400, lease: float = 60
) -> Callable[[Function], Function]: ...


def once(
    function: Function | None = None, *, key: str | Callback = "arguments", expires: float = 86_400, lease: float = 60
) -> Function | Callable[[Function], Function]:
    """Decorate a task's function, below `@shared_task`. Of all runs with one key, one has its effect, and the others its
    result.

    `key`: "arguments" (the default), "message", or a function that takes the task's arguments, with defaults filled in, and
    returns the key. `expires`: how long the result is remembered, in seconds. `lease`: how long a claim outlives its process at
    most, in seconds. A claim is renewed four times in that time, so the lease has to be longer than a task ever blocks its
    process (green pools). A run that fails frees the key. While another run holds the key, the message is sent again with a
    delay of a tenth of the lease. Called directly or eagerly, the function just runs. Raises ValueError for an unknown name as
    `key`.
    """
    if isinstance(key, str) and key not in KEYS:
        raise ValueError(f"key={key!r} is not known; allowed: {', '.join(KEYS)}, or a function")

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)

        @wraps(function)
        def run(*args: object, **kwargs: object) -> object:
            task = current_task
            if not task or task.request.called_directly or task.request.is_eager:
                return function(*args, **kwargs)
            itself = bool(args) and isinstance(args[0], Task)  # the first argument of a bound task
            call = inspect.Signature([*signature.parameters.values()][itself:]).bind(*args[itself:], **kwargs)
            call.apply_defaults()
            return _Run(task, _name(task, key, call), expires, lease).of(lambda: function(*args, **kwargs))

        run.__signature__ = signature  # type: ignore[attr-defined]  # for Celery's check of a call's arguments
        worker_init.connect(_refuse_without_store)
        return cast(Function, run)

    return decorate(function) if function else decorate


def _refuse_without_store(sender: Worker, **_: object) -> None:
    backend, url = _where(sender.app)
    if not backend or not backend.claims:
        refuse(f"{NO_STORE}; BACKEND={backend.name if backend else url.partition(':')[0]} has none")


def _where(app: Celery) -> tuple[Backend | None, str]:
    """The row and the URL of the store: of ONCE_URL, or else of the results server."""
    url = once_url() or app.conf.result_backend or ""
    return results.room(url), url


@cache
def _store(app: Celery) -> Claims:
    backend, url = _where(app)
    if not backend or not backend.claims:
        raise ImproperlyConfigured(NO_STORE)
    return backend.claims(app, url)


def _name(task: AnyTask, key: str | Callback, call: inspect.BoundArguments) -> str:
    """The key's name in the store: the task's name, and a digest of the rest."""
    if callable(key):
        what = key(*call.args, **call.kwargs)
    else:
        what = task.request.id if key == "message" else list(call.arguments.items())
    return f"once:{task.name}:{hashlib.sha256(dumps(what, sort_keys=True).encode()).hexdigest()[:32]}"


class Claim(TypedDict):
    """The value of a key whose run is not done. `process`: see :func:`~celery_kit.base.processes.identity`."""

    run: str
    task: str
    process: list[str | None]


class _Run:
    """One run of a task under its key."""

    def __init__(self, task: AnyTask, name: str, expires: float, lease: float) -> None:
        self.task, self.name, self.expires, self.lease = task, name, expires, lease
        self.claims = _store(task.app)
        self.id = uuid()
        self.claim = (
            CLAIM + json.dumps({"run": self.id, "task": task.request.id, "process": processes.identity(os.getpid())}).encode()
        )
        self.lock, self.holds = threading.Lock(), False
        self.due = math.inf  # its next renewal, in seconds of the monotonic clock
        self.failed = False  # the last renewal

    def of(self, effect: Callable[[], object]) -> object:
        """Run `effect` and return its value, or that of an earlier run. Raises Ignore if the task is sent again instead."""
        with keeper.keep(self):
            try:
                found = self._patiently(self._take)
            except self.claims.unavailable:
                return self._later("cannot be claimed: its store is unavailable")
            if found is None:
                self.holds = True
                return self._take_effect(effect)
        if not found.startswith(DONE):
            return self._later("is running elsewhere")
        logger.info("%s[%s] ran already: its first result is returned", self.task.name, self.task.request.id)
        return self.task.app.backend.decode(found.removeprefix(DONE))

    def _take(self) -> bytes | None:
        """Claim the key. Returns None, or the key's value. The claim of a dead process is taken over at once."""
        found = self.claims.claim(self.name, self.claim, self.lease)
        if found and found.startswith(CLAIM) and _is_dead(json.loads(found.removeprefix(CLAIM))):
            logger.warning("%s: the run that claimed it has died; run again", self.name)
            found = self.claims.claim(self.name, self.claim, self.lease, dead=found)
        return None if found == self.claim else found  # mine already: the answer was lost, and the claim was sent again

    def _take_effect(self, effect: Callable[[], object]) -> object:
        try:
            value = effect()
            done: bytes | str = self.task.app.backend.encode(value)
        except BaseException:
            self._end("frees its key", lambda: self.claims.release(self.name, self.claim))
            raise
        note = DONE + (done if isinstance(done, bytes) else done.encode())
        self._end("stores its result", lambda: self.claims.replace(self.name, self.claim, note, self.expires))
        return value

    def _end(self, what: str, step: Callable[[], object]) -> None:
        """The step after the effect. If it fails, the task does not fail, because its effect has happened."""
        with self.lock:
            self.holds = False
            try:
                if self._patiently(step) is False:
                    self.taken()
            except Exception as error:
                logger.error("%s: the store does not answer when this run %s: %s", self.name, what, error)

    def taken(self) -> None:
        """Log that the claim is lost."""
        self.holds = False
        logger.error("%s: its claim ran out and another run has it; the effect may happen twice", self.name)

    def _later(self, why: str) -> NoReturn:
        """Send the message again, then raise Ignore, which acknowledges this one. At no moment is there no message."""
        request = self.task.request
        logger.info("%s[%s] %s: sent again, for later", self.task.name, request.id, why)
        again = self.task.signature_from_request(countdown=self.lease / 10, retries=request.retries, add_to_parent=False)
        again.apply_async()
        raise MessageIsDone

    def _patiently(self, step: Callable[[], Value]) -> Value:
        """Do a step in the store. Retries for as long as a lease while the store is unavailable, then raises its error."""
        deadline = time.monotonic() + self.lease
        while True:
            try:
                return step()
            except self.claims.unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(AGAIN)


class _Keeper:
    """Renews the claims of this process during their runs, in a thread, or a greenlet where threads are green."""

    def __init__(self) -> None:
        self.runs: dict[str, _Run] = {}
        self._change = threading.Condition()
        self._wakes_at = 0.0  # in seconds of the monotonic clock; in the past while it works
        self._thread: threading.Thread | None = None

    @contextmanager
    def keep(self, run: _Run) -> Iterator[None]:
        """Renew the claim of `run` while the block runs."""
        run.due = time.monotonic() + run.lease / 4
        with self._change:
            self.runs[run.id] = run
            if not self._thread:
                self._thread = threading.Thread(target=self._work, name="once", daemon=True)
                self._thread.start()
            elif run.due < self._wakes_at:
                self._change.notify()
        try:
            yield
        finally:
            del self.runs[run.id]

    def _work(self) -> None:
        while True:
            with self._change:
                self._wakes_at = min((run.due for run in list(self.runs.values())), default=math.inf)
                wait = self._wakes_at - time.monotonic()
                if wait > 0:
                    self._change.wait(None if wait == math.inf else wait)
                    continue
            self._renew([run for run in list(self.runs.values()) if run.due <= time.monotonic()])

    def _renew(self, runs: list[_Run]) -> None:
        """Renew the claims of these runs in one round trip, so that a slow store delays each of them only once."""
        with ExitStack() as locked:
            held = []
            for run in runs:
                run.due = time.monotonic() + run.lease / 4
                if run.lock.acquire(blocking=False):  # otherwise the run is ending
                    locked.callback(run.lock.release)
                    if run.holds:
                        held.append(run)
            if not held:
                return
            try:
                answers = held[0].claims.renew([(run.name, run.claim, run.lease) for run in held])
            except Exception as error:  # other runs need this thread
                answers = [error] * len(held)
            for run, answer in zip(held, answers, strict=True):
                if isinstance(answer, Exception):
                    run.due = time.monotonic() + min(AGAIN, run.lease / 4)
                    logger.log(
                        logging.DEBUG if run.failed else logging.WARNING, "%s cannot be renewed now: %s", run.name, answer
                    )
                elif not answer:
                    run.taken()
                run.failed = isinstance(answer, Exception)


keeper = _Keeper()


def _after_fork() -> None:
    global keeper
    keeper = _Keeper()  # the parent's thread does not exist in the child
    _store.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _is_dead(claim: Claim) -> bool:
    """Whether the run with this claim is known to be over: its process is dead, or is this one and has no such run."""
    process = claim["process"]
    mine = bool(process[0]) and process == processes.identity(os.getpid())
    return processes.is_dead(process) or (mine and claim["run"] not in keeper.runs)
