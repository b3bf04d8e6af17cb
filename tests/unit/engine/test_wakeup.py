"""The bell wakes who polls it, once, however often it was rung."""

import select
import threading

from celery_kit.engine.wakeup import Bell


def rings(bell: Bell, seconds: float = 0) -> bool:
    return bool(select.select([bell], [], [], seconds)[0])


def test_it_is_rung_in_another_thread_and_heard_once() -> None:
    bell = Bell()
    assert not rings(bell)
    threading.Thread(target=bell.ring).start()
    assert rings(bell, 60)
    bell.ring()
    bell.hear()
    assert not rings(bell)
    bell.hear()  # nothing rings
    bell.close()


def test_it_can_be_rung_without_an_end_and_after_its_end() -> None:
    bell = Bell()
    for _ in range(10_000):
        bell.ring()
    assert rings(bell)
    bell.close()
    bell.ring()
