"""AMQP heartbeats of a worker whose loop rests during a task (solo): sent by a thread while the task runs.

Without them the broker would take a long task for a dead worker; without heartbeats at all, neither side would learn of a dead
connection. The thread only sends; the loop reads, and decides, after the task (celery_kit/brokers/rabbitmq/transport.py). A
task that holds the interpreter's lock in one call of C code keeps the thread from running, too.
Source: https://www.rabbitmq.com/docs/heartbeats; celery 5.7.0, worker/loops.py.
"""

import threading
from contextlib import suppress
from time import sleep
from typing import Any
from weakref import WeakKeyDictionary


class Lifeline:
    """A context for the time of a task, in which the connections that its thread has opened send their heartbeats.

    Connections add themselves: those with a negotiated `heartbeat`, in seconds, and `send_heartbeat()`.
    """

    def __init__(self) -> None:
        #: By connection, the thread that has opened it.
        self.connections: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        #: There has been one.
        self.is_needed = False
        # While the loop runs it alone has the connections: a TLS socket must not be read and written at once.
        self._turn = threading.RLock()
        self._in_a_task: int | None = None  # whose loop rests
        self._thread: threading.Thread | None = None

    def add(self, connection: Any) -> None:
        """Take an open connection; not that of a task, which has its own thread of control."""
        me = threading.get_ident()
        if self._in_a_task != me:
            with self._turn:
                self.connections[connection] = me
                self.is_needed = True

    def remove(self, connection: Any) -> None:
        """Called when the connection is about to be closed."""
        with self._turn:
            self.connections.pop(connection, None)

    def __enter__(self) -> "Lifeline":
        self._in_a_task = threading.get_ident()
        if self._thread is None:
            self._thread = threading.Thread(target=self._send, name="lifeline", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._turn:
            self._in_a_task = None

    def _send(self) -> None:
        while True:
            with self._turn:
                every = min((connection.heartbeat for connection in self.connections), default=1.0) / 2
            sleep(every)
            with self._turn:
                for connection, thread in self.connections.items():
                    if thread == self._in_a_task:
                        with suppress(Exception):  # the connection is dead: the loop will see
                            connection.send_heartbeat()


#: This process's.
lifeline = Lifeline()
