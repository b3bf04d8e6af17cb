"""AMQP heartbeats of a worker whose loop does not run during a task (solo): a thread sends them while the task runs.

Without these the broker would take a worker with a long task for dead; with heartbeats turned off, neither side would notice a
dead connection. The thread only sends. The loop reads after the task, and decides whether the connection is dead
(celery_kit/brokers/rabbitmq/transport.py). A task that holds the GIL in one call of C code blocks the thread too.
Source: https://www.rabbitmq.com/docs/heartbeats; celery 5.7.0, worker/loops.py.
"""

import threading
from contextlib import suppress
from time import sleep
from typing import Protocol
from weakref import WeakKeyDictionary


class HasHeartbeat(Protocol):
    """A connection with heartbeats. `heartbeat`: the negotiated interval, in seconds."""

    heartbeat: float

    def send_heartbeat(self) -> None: ...


class Lifeline:
    """A context for the run of a task, in which the connections that its thread has opened send their heartbeats.

    Connections add themselves when they have negotiated heartbeats.
    """

    def __init__(self) -> None:
        #: By connection, the thread that has opened it.
        self.connections: WeakKeyDictionary[HasHeartbeat, int] = WeakKeyDictionary()
        #: True once a connection was added.
        self.is_needed = False
        # While the loop runs, it alone uses the connections: a TLS socket must not be read and written at the same time.
        self._turn = threading.RLock()
        self._in_a_task: int | None = None  # the thread whose loop does not run
        self._thread: threading.Thread | None = None

    def add(self, connection: HasHeartbeat) -> None:
        """Send the heartbeats of an open connection of the worker. One that a task opens is left out: the task uses it."""
        me = threading.get_ident()
        if self._in_a_task != me:
            with self._turn:
                self.connections[connection] = me
                self.is_needed = True

    def remove(self, connection: HasHeartbeat) -> None:
        """Send no more heartbeats of `connection`. Call it before the connection is closed."""
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
                        with suppress(Exception):  # the connection is dead: the loop will notice
                            connection.send_heartbeat()


#: This process's.
lifeline = Lifeline()
