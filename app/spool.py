"""SPOOL=directory: a task that the broker does not take is written to disk, and goes to the broker when that is back.

A task is accepted once its file is on the disk: written, synced, renamed, and the directory synced too. It is sent with the id
that its sender got, and its file deleted then; a crash in between sends it twice, never not at all. While a process has files
there its further tasks go there as well, behind them, without waiting for the broker again. docs/spool.md
"""

import base64
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

from kombu.exceptions import OperationalError
from kombu.serialization import dumps, loads
from kombu.utils.uuid import uuid

from app.brokers.contract import RefusedError

logger = logging.getLogger(__name__)

#: Options of send_task that mean something in the process that called it only.
LOCAL = ("producer", "publisher", "connection", "router", "result_cls", "task_type", "add_to_parent")
#: Seconds between two tries to reach the broker.
PAUSE = 2.0

Call = dict[str, Any]


class SpoolFullError(OperationalError):
    """The broker is away, and the spool holds as many tasks as it may: this one was not accepted."""


class Spool:
    """The tasks in a directory, `most` of them at most. Several processes may share it."""

    def __init__(self, directory: Path, most: int) -> None:
        self.directory, self.most = directory, most
        self._numbers = count()
        self._sending: threading.Thread | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def put(self, call: Call, serializer: str) -> None:
        """Accept a call of send_task. Raises SpoolFullError, OSError, or the serializer's error: it is not accepted then."""
        if sum(1 for _ in self._entries()) >= self.most:
            raise SpoolFullError(f"the broker is away, and the spool {self.directory} is full: {self.most} tasks")
        content_type, encoding, data = dumps(call, serializer)
        body = base64.b64encode(data if isinstance(data, bytes) else data.encode()).decode()
        name = f"{time.time_ns():020d}-{os.getpid():07d}-{next(self._numbers):09d}"
        draft = self.directory / f"{name}.draft"
        with draft.open("x") as file:
            json.dump(
                {"task": call["name"], "id": call["task_id"], "type": content_type, "encoding": encoding, "call": body}, file
            )
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self.directory / f"{name}.task")
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def names(self) -> list[str]:
        """The files of accepted tasks, in the order of their acceptance."""
        return sorted(self._entries())

    def _entries(self) -> Iterator[str]:
        return (entry.name for entry in os.scandir(self.directory) if entry.name.endswith(".task"))

    def forward(self, send: Callable[[Call], Any]) -> Iterator[str]:
        """Send what is there, oldest first; gives each id once its task is sent. Raises OperationalError where the broker is
        away: the rest stays. So does a task that cannot be sent for a reason of its own; the log says so.

        Nothing is sent while another process is at it.
        """
        with self._alone() as alone:
            for name in self.names() if alone else []:
                path = self.directory / name
                found = json.loads(path.read_text())
                try:
                    send(loads(base64.b64decode(found["call"]), found["type"], found["encoding"], accept=[found["type"]]))
                except (OperationalError, ConnectionError):
                    raise
                except Exception:
                    logger.exception("%s stays in the spool: it cannot be sent", path)
                    continue
                path.unlink()
                yield found["id"]

    def forward_in_background(self, send: Callable[[Call], Any]) -> None:
        """Go on trying until nothing is left, in a thread that ends with the process."""
        with self._lock:
            if self._pid != os.getpid():
                self._sending, self._pid = None, os.getpid()
            if not self._sending:
                self._sending = threading.Thread(target=self._forward, args=(send,), name="spool", daemon=True)
                self._sending.start()

    @property
    def sending(self) -> bool:
        """This process has put tasks there, and not seen all of them go."""
        return self._sending is not None and self._pid == os.getpid()

    def _forward(self, send: Callable[[Call], Any]) -> None:
        while True:
            sent = 0
            try:
                for _ in self.forward(send):
                    sent += 1
            except (OperationalError, OSError) as error:
                logger.warning("the broker is away (%s): %d tasks wait in %s", error, len(self.names()), self.directory)
            if sent:
                logger.warning("%d tasks sent from the spool %s", sent, self.directory)
            with self._lock:
                if not self.names():
                    self._sending = None
                    return
            if not sent:
                time.sleep(PAUSE)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        with (self.directory / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


class Spooled:
    """send_task for an app that has a spool: `app.conf.spool` and `spool_most`."""

    def __init__(self, app: Any, send: Callable[..., Any]) -> None:
        self.app, self.send = app, send
        directory = Path(app.conf.spool)
        directory.mkdir(parents=True, exist_ok=True)
        self.spool = Spool(directory, app.conf.spool_most)
        self._looked = False

    def send_call(self, call: Call) -> Any:
        return self.send(
            call["name"], call["args"], call["kwargs"], **call["options"], task_id=call["task_id"], add_to_parent=False
        )

    def forward(self) -> Iterator[str]:
        """Send what waits; gives the ids of what was sent. Raises OperationalError where the broker is away."""
        return self.spool.forward(self.send_call)

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
