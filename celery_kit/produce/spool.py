"""SPOOL=directory: a task that the broker does not take is written to disk, and goes to the broker when that is back.

A task is accepted once its file is on the disk: written, synced, renamed, and the directory synced too. It is sent with the id
that its sender got, and its file deleted then; a crash in between sends it twice, never not at all. While a process has files
there its further tasks go there as well, behind them, without waiting for the broker again. A file that holds no task which the
app accepts, or one that cannot be sent, is moved aside and keeps none of the others. docs/spool.md
"""

import base64
import json
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from kombu.exceptions import LimitExceeded, OperationalError
from kombu.serialization import dumps, loads, prepare_accept_content
from kombu.utils.uuid import uuid

from celery_kit.base.files import NotOursError, private, read_ours
from celery_kit.base.messages import RefusedError, UnroutedError
from celery_kit.base.refusals import Absent

try:
    import fcntl
except ImportError:  # celery_kit/profile.py has refused SPOOL by then
    fcntl: Any = Absent("SPOOL")  # type: ignore[no-redef]

logger = logging.getLogger(__name__)

#: Options of send_task that mean something in the process that called it only.
LOCAL = ("producer", "publisher", "connection", "router", "result_cls", "task_type", "add_to_parent")
#: Seconds between two tries to reach the broker.
PAUSE = 2.0
#: Tries of a task that fail for a reason of its own, before it is moved aside.
TRIES = 5
#: What a call holds, and the options that say where it goes.
KINDS: dict[str, type] = {"name": str, "task_id": str, "args": list, "kwargs": dict, "options": dict}
PLACE = ("queue", "exchange", "routing_key")
TASK, BAD = ".task", ".bad"
OURS = (TASK, BAD, ".draft", "lock")
#: Errors that say nothing about the task.
AWAY = (OperationalError, ConnectionError, LimitExceeded)

Call = dict[str, Any]


class BadFileError(ValueError):
    """A file of the spool that holds no task which the app accepts."""


class SpoolFullError(OperationalError):
    """The broker is away, and the spool holds as many tasks as it may: this one was not accepted."""


class Spool:
    """The tasks in a directory, `most` of them at most. Several processes of one user may share it.

    `accept`: the serializers whose files are read, as in Celery's `accept_content`. Raises NotOursError for a directory that
    others own or may write to.
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
        self._sending: object | None = None  # one for each thread

    def put(self, call: Call, serializer: str) -> None:
        """Accept a call of send_task. Raises SpoolFullError, OSError, or the serializer's error: it is not accepted then."""
        if sum(1 for _ in self._entries(TASK, BAD)) >= self.most:
            raise SpoolFullError(f"the broker is away, and the spool {self.directory} is full: {self.most} tasks")
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
        """The files that were moved aside."""
        return sorted(self._entries(BAD))

    def _entries(self, *endings: str) -> Iterator[str]:
        with suppress(FileNotFoundError):  # somebody has deleted the directory
            yield from (entry.name for entry in os.scandir(self.directory) if entry.name.endswith(endings))

    def forward(self, send: Callable[[Call], Any], again: bool = False) -> Iterator[str]:
        """Send what is there, oldest first; gives each id once its task is sent. `again`: also what was moved aside.

        Raises one of AWAY where the broker is: the rest stays. A task that `send` raises RefusedError for stays, and with it
        what goes to the same place, until the next time. One that cannot be sent for a reason of its own is moved aside after
        TRIES times, one that cannot be read at once. Nothing is sent while another process is at it.
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
                except AWAY:
                    raise
                except Exception as error:
                    at_once = isinstance(error, BadFileError | NotOursError)
                    self._failed(path, f"cannot be sent: {type(error).__name__}: {error}", 1 if at_once else TRIES)
                else:
                    path.unlink(missing_ok=True)
                    self._tries.pop(path.stem, None)
                    yield task_id

    def _read(self, path: Path) -> tuple[str, Call]:
        """A task's id and call. Raises BadFileError for what holds none that is accepted, NotOursError, OSError."""
        text = read_ours(path)
        try:
            record = json.loads(text)
            return str(record["id"]), self._call_of(record)
        except Exception as error:  # a file may hold anything
            raise BadFileError(f"{type(error).__name__}: {error}") from error

    def _call_of(self, record: dict[str, Any]) -> Call:
        accept = prepare_accept_content(self.accept)
        call: Call = loads(base64.b64decode(record["call"]), record["type"], record["encoding"], accept=accept)
        fit = isinstance(call, dict) and {name: type(call.get(name)) for name in KINDS} == KINDS
        if not fit:
            raise BadFileError("it is no call of a task")
        return call

    def _failed(self, path: Path, why: str, tries: float) -> None:
        """Note that a task was not sent; moves its file aside after so many times. The log has it once, and then."""
        self._tries[path.stem] += 1
        if self._tries[path.stem] >= tries or path.suffix == BAD:
            logger.error("%s %s", path.with_suffix(BAD), why)
            path.replace(path.with_suffix(BAD))
            del self._tries[path.stem]
        elif self._tries[path.stem] == 1:
            logger.warning("%s %s", path, why)

    def forward_in_background(self, send: Callable[[Call], Any]) -> None:
        """Go on trying until nothing is left, in a thread that ends with the process."""
        if self._pid != os.getpid():
            self._begin()  # the parent's thread is not here, and may have held its lock
        with self._lock:
            if not self._sending:
                self._sending = object()
                thread = threading.Thread(target=self._work, args=(send, self._sending), name="spool", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # the process is ending, or may have no more threads
                    self._sending = None
                    logger.warning("tasks wait in the spool %s: %s", self.directory, error)

    @property
    def sending(self) -> bool:
        """This process has put tasks there, and not seen all of them go."""
        return self._sending is not None and self._pid == os.getpid()

    def _work(self, send: Callable[[Call], Any], me: object) -> None:
        said = ""
        try:
            while not self._is_empty():
                sent, trouble = 0, ""
                try:
                    for _ in self.forward(send):
                        sent += 1
                except AWAY as error:
                    trouble = f"the broker is away ({error})"
                except Exception as error:  # others count on this thread
                    trouble = f"{type(error).__name__}: {error}"
                if sent:
                    logger.warning("%d tasks sent from the spool %s", sent, self.directory)
                if trouble and trouble != said:
                    logger.warning("tasks wait in the spool %s: %s", self.directory, trouble)
                said = trouble
                if not sent:
                    time.sleep(PAUSE)
        finally:
            if self._sending is me:
                self._sending = None

    def _is_empty(self) -> bool:
        """Nothing waits; what is put from now on needs a thread of its own."""
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

    def let_go(self) -> None:
        """In a forked child: the parent's lock is not held by it, too."""
        if self._held is not None:
            os.close(self._held)


class Spooled:
    """send_task for an app that has a spool: `app.conf.spool` and `spool_most`."""

    def __init__(self, app: Any, send: Callable[..., Any]) -> None:
        self.app, self.send = app, send
        self.spool = Spool(Path(app.conf.spool), app.conf.spool_most, app.conf.accept_content)
        self._looked = False
        #: The backends of this process' threads, by where they get their replies.
        self._backends: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def send_call(self, call: Call) -> Any:
        """Send it. Raises as send_task does, and RefusedError for whatever the broker has answered no to."""
        own = {"task_id": call["task_id"], "add_to_parent": False}
        try:
            if backend := self._backends.get(call["options"].get("reply_to", "")):
                with self.app.producer_or_acquire() as producer:  # what a task's sender does; this thread is another
                    backend.on_task_call(producer, call["task_id"])
            return self.send(call["name"], call["args"], call["kwargs"], **call["options"], **own)
        except RefusedError:
            raise
        except OperationalError as error:
            if isinstance(error.__cause__, (UnroutedError, *self.app.connection_for_write().channel_errors)):
                raise RefusedError(str(error)) from error
            raise

    def forward(self) -> Iterator[str]:
        """Send what waits, and what was moved aside; gives the ids of what was sent. Raises one of AWAY where the broker is."""
        return self.spool.forward(self.send_call, again=True)

    def send_task(self, name: str, args: Any, kwargs: Any, countdown: Any, eta: Any, options: dict[str, Any]) -> Any:
        """Send, or accept for later; gives an AsyncResult either way."""
        options["task_id"] = options.get("task_id") or uuid()
        if not self._looked:
            self._looked = True
            if self.spool.names():  # what an earlier process has left; this task goes behind it
                self.spool.forward_in_background(self.send_call)
        if not self.spool.sending:
            try:
                return self.send(name, args, kwargs, countdown, eta, **options)
            except (OperationalError, ConnectionError, RefusedError) as error:
                logger.warning("the broker is away (%s): tasks go to the spool %s", error, self.spool.directory)
        return self.accept(name, args, kwargs, countdown, eta, options)

    def accept(self, name: str, args: Any, kwargs: Any, countdown: Any, eta: Any, options: dict[str, Any]) -> Any:
        """Write it to the spool, to be sent later; gives an AsyncResult. `options` hold its `task_id`."""
        self._backends.setdefault(self.app.thread_oid, self.app.backend)
        self.spool.put(self._call(name, args, kwargs, countdown, eta, options), self._serializer(options))
        self.spool.forward_in_background(self.send_call)
        result = (options.get("result_cls") or self.app.AsyncResult)(options["task_id"])
        if options.get("add_to_parent", True) and (parent := self.app.current_worker_task):
            parent.add_trail(result)
        return result

    def _serializer(self, options: dict[str, Any]) -> str:
        return str(options.get("serializer") or self.app.conf.task_serializer)

    def _call(self, name: str, args: Any, kwargs: Any, countdown: Any, eta: Any, options: dict[str, Any]) -> Call:
        """The call as it can be made later by another process: times are absolute, parents and the reply's way are named."""
        kept = {key: value for key, value in options.items() if key not in (*LOCAL, "task_id") and value is not None}
        if countdown:
            eta = self.app.now() + timedelta(seconds=countdown)
        if eta:
            kept["eta"] = eta if isinstance(eta, str) else eta.isoformat()
        expires = kept.get("expires")
        if isinstance(expires, int | float):
            expires = self.app.now() + timedelta(seconds=expires)
        if expires:
            kept["expires"] = expires if isinstance(expires, str) else expires.isoformat()
        kept.setdefault("reply_to", self.app.thread_oid)
        if parent := self.app.current_worker_task:
            kept.setdefault("root_id", parent.request.root_id or parent.request.id)
            kept.setdefault("parent_id", parent.request.id)
        return {"name": name, "task_id": options["task_id"], "args": list(args or ()), "kwargs": kwargs or {}, "options": kept}
