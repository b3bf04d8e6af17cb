"""The worker's loop does not sleep while it has something to do."""

import socket
import threading
from typing import Any

from kombu.asynchronous import Hub

from celery_kit.fixes import hub_stall


def test_what_a_callback_hands_to_the_loop_is_done_before_it_sleeps() -> None:
    """A message arrives two seconds later; kombu's own loop sleeps until then, and handles it first."""
    hub_stall.patch()
    hub: Any = Hub()
    reader, writer = socket.socketpair()
    done: list[str] = []
    hub.call_soon(lambda: hub.call_soon(lambda: done.append("callback")))
    hub.add_reader(reader, lambda: done.append(reader.recv(9).decode()))
    hub.timer.call_after(60, lambda: None)
    arrives = threading.Timer(2, lambda: writer.send(b"message"))
    arrives.start()
    try:
        while len(done) < 2:
            hub.run_once()
    finally:
        arrives.join()
        hub.close()
        reader.close()
        writer.close()
    assert done == ["callback", "message"]
