"""What celery_kit/observe/control.py uses of kombu.pidbox, celery.app.control and celery.events.receiver, as 5.7.0 has it."""

from collections.abc import Collection

from celery import Celery

from celery_kit.base.types import Headers, Message

class Node:
    def __init__(self, *args: object, **options: object) -> None: ...
    def handle_message(self, body: Headers, message: Message | None = None) -> object: ...

class Mailbox:
    node_cls: type[Node]
    accept: Collection[str]
    serializer: str

class Control:
    app: Celery
    mailbox: Mailbox
    def __init__(self, app: Celery | None = None) -> None: ...

class EventReceiver:
    app: Celery
    accept: Collection[str]
    def __init__(self, *args: object, **options: object) -> None: ...
