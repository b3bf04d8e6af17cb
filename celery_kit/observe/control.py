"""Remote control and events, signed where the app signs its messages: what is not signed, or is old, is ignored with a line.

A worker carries a signed command out once. Source: kombu/pidbox.py, celery/app/control.py, celery/events/receiver.py 5.7.0.
"""

import time
from typing import TYPE_CHECKING

from celery.utils.log import get_logger

from celery_kit.base.messages import CONTROL

if TYPE_CHECKING:
    from celery import Celery
    from upstream.celery_control import Control as CelerysControl
    from upstream.celery_control import EventReceiver
    from upstream.celery_control import Node as CelerysNode

    from celery_kit.base.types import Headers, Message
else:
    from celery.app.control import Control as CelerysControl
    from celery.events.receiver import EventReceiver
    from kombu.pidbox import Node as CelerysNode

logger = get_logger(__name__)
#: Seconds for which a worker remembers a command: twice as long as a command is valid, for clocks that differ.
REMEMBERED = 60.0


class Node(CelerysNode):
    """A worker's end of remote control."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self._seen: dict[str, float] = {}

    def on_decode_error(self, message: "Message", exc: Exception) -> None:
        """Ignore a command that cannot be read, or is not signed."""
        logger.error("remote control: a command is ignored: %s", exc)

    def handle_message(self, body: "Headers", message: "Message | None" = None) -> object:
        """Carry a command out, unless a signed one comes again."""
        if nonce := getattr(body, "nonce", None):
            now = time.monotonic()
            seen = self._seen
            if seen.get(nonce, 0.0) > now:
                logger.error("remote control: a command is ignored: it came before: %r", str(body.get("method"))[:100])
                return None
            for old in [one for one, until in seen.items() if until <= now]:
                del seen[old]
            seen[nonce] = now + REMEMBERED
        return super().handle_message(body, message)


class Control(CelerysControl):
    """Celery's, whose commands and answers are signed if the app signs its messages."""

    def __init__(self, app: "Celery | None" = None) -> None:
        super().__init__(app)
        mailbox, conf = self.mailbox, self.app.conf
        mailbox.node_cls = Node
        if conf.security_key:
            mailbox.accept, mailbox.serializer = [CONTROL], CONTROL


class Receiver(EventReceiver):
    """Celery's, which takes signed events alone if the app signs its messages."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        if self.app.conf.security_key and options.get("accept") is None:
            self.accept = {self.app.conf.event_serializer}

    def on_decode_error(self, message: "Message", exc: Exception) -> None:
        """Ignore an event that cannot be read, or is not signed."""
        logger.error("an event is ignored: %s", exc)
