"""AMQP heartbeats of a worker whose loop rests during a task (solo): by a thread, while the task runs.

Without them the broker would take a long task for a dead worker; this is why the pool once had none, and then neither side
learned of a connection that was dead. The thread only sends. What the loop reads and decides, it does after the task:
celery_kit/fixes/dead_connection.py. A task that keeps the interpreter's lock in one call of C code keeps the thread from
running, too. Source: https://www.rabbitmq.com/docs/heartbeats; celery 5.7.0, worker/loops.py.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import bootsteps

from celery_kit.pools.table import row


class Step(bootsteps.StartStopStep):
    """Has a worker on such a pool keep its connections alive during a task."""

    label = "Lifeline"
    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.in_a_task = self.beats = False
        # While the loop runs it alone has the connections: a TLS socket must not be read and written at once.
        self.turn = threading.Lock()
        self.enough = threading.Event()

    def include_if(self, parent: Any) -> bool:
        return bool((pool := row(parent.pool)) and not pool.answers_while_busy)

    def create(self, parent: Any) -> None:
        parent.pool.on_apply = self._during(parent.pool.on_apply)

    def start(self, parent: Any) -> None:
        events = parent.event_dispatcher
        given = [parent.connection, *([events.connection] if events else [])]
        connections = [one for one in given if one and one.supports_heartbeats and one.get_heartbeat_interval()]
        self.beats = bool(connections)
        if connections:
            every = min(one.get_heartbeat_interval() for one in connections) / 2
            self.enough = threading.Event()
            names = [one.connection for one in connections], every, self.enough
            threading.Thread(target=self._send, args=names, name="lifeline", daemon=True).start()

    def stop(self, parent: Any) -> None:
        self.enough.set()

    shutdown = stop

    def _during(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            if not self.beats:
                return apply(*args, **options)
            self.in_a_task = True
            try:
                return apply(*args, **options)
            finally:
                with self.turn:
                    self.in_a_task = False

        return run

    def _send(self, connections: list[Any], every: float, enough: threading.Event) -> None:
        while not enough.wait(every):
            with self.turn:
                for connection in connections if self.in_a_task else ():
                    with suppress(Exception):  # it is dead: the loop will see
                        connection.send_heartbeat()
