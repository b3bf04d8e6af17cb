"""A wake-up is readable once, however often it was written to."""

import select
import threading

from celery_kit.engine.wakeup import WakeUp


def readable(wake_up: WakeUp, seconds: float = 0) -> bool:
    return bool(select.select([wake_up], [], [], seconds)[0])


def test_another_thread_wakes_the_loop_once() -> None:
    wake_up = WakeUp()
    assert not readable(wake_up)
    threading.Thread(target=wake_up.wake).start()
    assert readable(wake_up, 60)
    wake_up.wake()
    wake_up.drain()
    assert not readable(wake_up)
    wake_up.drain()  # there is nothing to read
    wake_up.close()


def test_any_number_of_wakes_never_block_nor_fail_after_it_is_closed() -> None:
    wake_up = WakeUp()
    for _ in range(10_000):
        wake_up.wake()
    assert readable(wake_up)
    wake_up.close()
    wake_up.wake()
