"""SPOOL=directory: a task that cannot be sent, because the broker is unavailable, is written to disk and sent later.

A task is accepted once its file is on the disk: written, synced, renamed, and the directory synced too. It is sent with the id
that its sender got, and then its file is deleted. A crash in between sends it twice, and never loses it. While a process has
files in the spool, its further tasks are put behind them without waiting for the broker again. A file that holds no task which
the app accepts, or one that cannot be sent, is renamed (`.bad`) and does not delay the others. docs/spool.md
"""

import base64
import json
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias, TypedDict
from weakref import WeakValueDictionary

from celery import Celery
from celery.backends.base import Backend
from kombu.exceptions import LimitExceeded, OperationalError
from kombu.serialization import dumps, loads, prepare_accept_content
from kombu.utils.uuid import uuid

from celery_kit.base.files import NotOursError, private, read_ours
from celery_kit.base.messages import AUTH, RefusedError, UnroutedError
from celery_kit.base.refusals import Absent
from celery_kit.base.sizes import most
from celery_kit.base.types import AnyResult

fcntl: ModuleType | Absent
try:
    import fcntl
except ImportError:  # celery_kit/base/choices.py has refused SPOOL by then
    fcntl = Absent("SPOOL")

logger = logging.getLogger(__name__)

#: Options of send_task that have a meaning only in the process that called it.
LOCAL = ("producer", "publisher", "connection", "router", "result_cls", "task_type", "add_to_parent")
#: Seconds between two tries to reach the broker.
PAUSE = 2.0
#: A file may be so many times as large as a message's body: it holds one in base64, and names.
LARGEST = 4
#: A task that cannot be sent for a reason of its own is tried so many times, then renamed.
TRIES = 5
#: The types of a call's fields, and the options that decide where it is sent.
KINDS: dict[str, type] = {"name": str, "task_id": str, "args": list, "kwargs": dict, "options": dict}
PLACE = ("queue", "exchange", "routing_key")
TASK, BAD = ".task", ".bad"
OURS = (TASK, BAD, ".draft", "lock")
#: Errors of an unavailable broker, which do not depend on the task.
UNAVAILABLE = (OperationalError, ConnectionError, LimitExceeded)


#: Options of send_task, by name.
SendOptions: TypeAlias = dict[str, Any]


class Call(TypedDict):
    """A call of send_task that another process can make later."""

    name: str
    task_id: str
    args: list[object]
    kwargs: dict[str, object]
    options: SendOptions


#: What sends a call. It raises one of UNAVAILABLE if the broker is unavailable.
Send: TypeAlias = Callable[[Call], object]
Args: TypeAlias = Sequence[object] | None
Kwargs: TypeAlias = Mapping[str, object] | None
#: Seconds.
Countdown: TypeAlias = float | None
#: A datetime, or a text as in ISO 8601.
Eta: TypeAlias = datetime | str | None


class BadFileError(ValueError):
    """A file of the spool that holds no task which the app accepts."""


class SpoolFullError(OperationalError):
    """The broker is unavailable, and the spool is full: this task was not accepted."""


class Spool:
    """The tasks in a directory, at most `most` of them. Several processes of one user may share it.

    `accept`: the serializers whose files are read, like Celery's `accept_content`. Raises NotOursError for a directory that
    another user owns or may write to.
    """

    def __init__(self, directory: Path, most: int, accept: Collection[str]) -> None:
        private(directory, OURS)
        self.directory, self.most, self.accept = directory, most, accept
        self._numbers = count()
        self._tries: Counter[str] = Counter()
        self._held: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._sending: object | None = None  # a token of the thread that sends

    def put(self, call: Call, serializer: str) -> None:
        """Accept a call of send_task. Raises SpoolFullError, OSError, or the serializer's error if it is not accepted."""
        if sum(1 for _ in self._entries(TASK, BAD)) >= self.most:
            raise SpoolFullError(f"the broker is unavailable, and the spool {self.directory} is full: {self.most} tasks")
        content_type, encoding, data = dumps(call, serializer)
        body = base64.b64encode(data if isinstance(data, bytes) else data.encode()).decode()
        record = {"task": call["name"], "id": call["task_id"], "type": content_type, "encoding": encoding, "call": body}
        self._call_of(record)
        name = f"{time.time_ns():020d}-{os.getpid():07d}-{next(self._numbers):09d}"
        draft = self.directory / f"{name}.draft"
        try:
            with open(draft, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                json.dump(record, file)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self.directory / f"{name}{TASK}")
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def names(self) -> list[str]:
        """The files of accepted tasks, in the order of their acceptance."""
        return sorted(self._entries(TASK))

    def bad(self) -> list[str]:
        """The files of tasks that could not be sent."""
        return sorted(self._entries(BAD))

    def _entries(self, *endings: str) -> Iterator[str]:
        with suppress(FileNotFoundError):  # somebody has deleted the directory
            yield from (entry.name for entry in os.scandir(self.directory) if entry.name.endswith(endings))

    def forward(self, send: Send, again: bool = False) -> Iterator[str]:
        """Send the tasks, oldest first. Yields each id after its task is sent. `again`: also those that could not be sent.

        Raises one of UNAVAILABLE if the broker is unavailable; the other tasks stay. If `send` raises RefusedError, the task
        stays, and with it all that go to the same place, until the next call. A task that cannot be sent for a reason of its
        own is renamed after TRIES tries, a file that cannot be read at once. Sends nothing while another process sends.
        """
        full: set[tuple[str, ...]] = set()
        with self._alone() as alone:
            for name in sorted(self._entries(*((TASK, BAD) if again else (TASK,)))) if alone else []:
                path = self.directory / name
                try:
                    task_id, call = self._read(path)
                    place = call["name"], *(repr(call["options"].get(option)) for option in PLACE)
                    if place in full:
                        continue
                    send(call)
                except FileNotFoundError:
                    continue
                except RefusedError as error:
                    full.add(place)
                    self._failed(path, f"waits: {error}", math.inf)
                except UNAVAILABLE:
                    raise
                except Exception as error:
                    at_once = isinstance(error, BadFileError | NotOursError)
                    self._failed(path, f"cannot be sent: {type(error).__name__}: {error}", 1 if at_once else TRIES)
                else:
                    path.unlink(missing_ok=True)
                    self._tries.pop(path.stem, None)
                    yield task_id

    def _read(self, path: Path) -> tuple[str, Call]:
        """A file's task id and call. Raises BadFileError if it holds no task that is accepted, NotOursError, OSError."""
        text = read_ours(path, LARGEST * most())
        try:
            record = json.loads(text)
            return str(record["id"]), self._call_of(record)
        except Exception as error:  # a file may hold anything
            raise BadFileError(f"{type(error).__name__}: {error}") from error

    def _call_of(self, record: Mapping[str, str]) -> Call:
        accept = prepare_accept_content(self.accept)
        call: Call = loads(base64.b64decode(record["call"]), record["type"], record["encoding"], accept=accept)
        fit = isinstance(call, dict) and {name: type(call.get(name)) for name in KINDS} == KINDS
        if not fit:
            raise BadFileError("it is no call of a task")
        return call

    def _failed(self, path: Path, why: str, tries: float) -> None:
        """Count a failed try, and rename the file after so many. Logs the first try and the last."""
        why = why.encode(errors="backslashreplace").decode()  # the file may hold what no log can be written with
        self._tries[path.stem] += 1
        if self._tries[path.stem] >= tries or path.suffix == BAD:
            try:
                path.replace(path.with_suffix(BAD))
            except OSError as error:  # it stays where it is, and does not delay the others
                if self._tries[path.stem] <= tries:
                    logger.error("%s %s; it cannot be renamed: %s", path, why, error)
                return
            logger.error("%s %s", path.with_suffix(BAD), why)
            del self._tries[path.stem]
        elif self._tries[path.stem] == 1:
            logger.warning("%s %s", path, why)

    def forward_in_background(self, send: Send) -> None:
        """Send until no task is left, in a daemon thread."""
        if self._pid != os.getpid():
            self._begin()  # the parent's thread does not exist in the child, and may have held the lock
        with self._lock:
            if not self._sending:
                self._sending = object()
                thread = threading.Thread(target=self._work, args=(send, self._sending), name="spool", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # the process is exiting, or may have no more threads
                    self._sending = None
                    logger.warning("tasks wait in the spool %s: %s", self.directory, error)

    @property
    def sending(self) -> bool:
        """Whether this process has put tasks into the spool that are not all sent yet."""
        return self._sending is not None and self._pid == os.getpid()

    def _work(self, send: Send, me: object) -> None:
        logged = ""
        try:
            while not self._is_empty():
                sent, trouble = 0, ""
                try:
                    for _ in self.forward(send):
                        sent += 1
                except UNAVAILABLE as error:
                    trouble = f"the broker is unavailable ({error})"
                except Exception as error:  # later tasks need this thread
                    trouble = f"{type(error).__name__}: {error}"
                if sent:
                    logger.warning("%d tasks sent from the spool %s", sent, self.directory)
                if trouble and trouble != logged:
                    logger.warning("tasks wait in the spool %s: %s", self.directory, trouble)
                logged = trouble
                if not sent:
                    time.sleep(PAUSE)
        finally:
            if self._sending is me:
                self._sending = None

    def _is_empty(self) -> bool:
        """Whether no task waits. If so, the next task that is put starts a thread of its own."""
        with self._lock:
            try:
                if self.names():
                    return False
            except OSError as error:
                logger.warning("the spool %s cannot be read: %s", self.directory, error)
            self._sending = None
            return True

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        lock = os.open(self.directory / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._held = lock
            yield self._held == lock
        finally:
            if self._held == lock:
                self._held = None
            os.close(lock)

    def close_inherited(self) -> None:
        """In a forked child: close the descriptor that holds the parent's lock."""
        if self._held is not None:
            os.close(self._held)


class Spooled:
    """send_task for an app that has a spool: `app.conf.spool` and `spool_most`."""

    def __init__(self, app: Celery, send: Callable[..., AnyResult]) -> None:
        self.app, self.send = app, send
        #: Where messages are signed, so are the files.
        self._signed = bool(app.conf.security_key)
        self.spool = Spool(Path(app.conf.spool), app.conf.spool_most, [AUTH] if self._signed else app.conf.accept_content)
        self._looked = False
        #: The result backends of this process's threads, by their queue for replies.
        self._backends: WeakValueDictionary[str, Backend] = WeakValueDictionary()

    def send_call(self, call: Call) -> AnyResult:
        """Send a call. Raises what send_task raises, and RefusedError for each refusal of the broker."""
        own = {"task_id": call["task_id"], "add_to_parent": False}
        try:
            if backend := self._backends.get(call["options"].get("reply_to", "")):
                with self.app.producer_or_acquire() as producer:  # for the backend of the sender, which is another thread
                    backend.on_task_call(producer, call["task_id"])
            return self.send(call["name"], call["args"], call["kwargs"], **call["options"], **own)
        except RefusedError:
            raise
        except OperationalError as error:
            if isinstance(error.__cause__, (UnroutedError, *self.app.connection_for_write().channel_errors)):
                raise RefusedError(str(error)) from error
            raise

    def forward(self) -> Iterator[str]:
        """Send all tasks, also those that could not be sent before. Yields their ids. Raises as :meth:`Spool.forward`."""
        return self.spool.forward(self.send_call, again=True)

    def send_task(
        self, name: str, args: Args, kwargs: Kwargs, countdown: Countdown, eta: Eta, options: SendOptions
    ) -> AnyResult:
        """Send the task, or accept it for later. Raises SpoolFullError, OSError, or the serializer's error if it is not
        accepted.
        """
        options["task_id"] = options.get("task_id") or uuid()
        if not self._looked:
            self._looked = True
            if self.spool.names():  # an earlier process has left tasks, which go first
                self.spool.forward_in_background(self.send_call)
        if not self.spool.sending:
            try:
                return self.send(name, args, kwargs, countdown, eta, **options)
            except (OperationalError, ConnectionError, RefusedError) as error:
                logger.warning("the broker is unavailable (%s): tasks go to the spool %s", error, self.spool.directory)
        return self.accept(name, args, kwargs, countdown, eta, options)

    def accept(self, name: str, args: Args, kwargs: Kwargs, countdown: Countdown, eta: Eta, options: SendOptions) -> AnyResult:
        """Write the task to the spool, to be sent later. `options` hold its `task_id`. Raises what :meth:`Spool.put` raises."""
        self._backends.setdefault(self.app.thread_oid, self.app.backend)
        self.spool.put(self._call(name, args, kwargs, countdown, eta, options), self._serializer(options))
        self.spool.forward_in_background(self.send_call)
        result: AnyResult = (options.get("result_cls") or self.app.AsyncResult)(options["task_id"])
        if options.get("add_to_parent", True) and (parent := self.app.current_worker_task):
            parent.add_trail(result)
        return result

    def _serializer(self, options: SendOptions) -> str:
        return AUTH if self._signed else str(options.get("serializer") or self.app.conf.task_serializer)

    def _call(self, name: str, args: Args, kwargs: Kwargs, countdown: Countdown, eta: Eta, options: SendOptions) -> Call:
        """The call in a form for another process: with absolute times, and with the parent task and the queue for replies."""
        portable = {key: value for key, value in options.items() if key not in (*LOCAL, "task_id") and value is not None}
        if countdown:
            eta = self.app.now() + timedelta(seconds=countdown)
        if eta:
            portable["eta"] = eta if isinstance(eta, str) else eta.isoformat()
        expires = portable.get("expires")
        if isinstance(expires, int | float):
            expires = self.app.now() + timedelta(seconds=expires)
        if expires:
            portable["expires"] = expires if isinstance(expires, str) else expires.isoformat()
        portable.setdefault("reply_to", self.app.thread_oid)
        if parent := self.app.current_worker_task:
            portable.setdefault("root_id", parent.request.root_id or parent.request.id)
            portable.setdefault("parent_id", parent.request.id)
        return {
            "name": name,
            "task_id": options["task_id"],
            "args": list(args or ()),
            "kwargs": dict(kwargs or {}),
            "options": portable,
        }
