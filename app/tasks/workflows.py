"""Work that is made of other tasks: a chain whose middle is a chord, a group of mails with one count at the end."""

from typing import Any

from celery import Task, chain, chord, group, shared_task
from celery.canvas import Signature

from app.tasks.mail import send_email
from app.tasks.media import thumbnail


def mailing(recipients: list[str], picture: str) -> Signature[Any]:
    """A chain: shrink the picture, then mail everybody, then count what was sent. Needs a backend that can do chords."""
    mails = [send_email.si(to, "A picture for you", f"{picture} is ready") for to in recipients]
    return chain(thumbnail.si(picture), chord(group(mails), count.s(picture=picture)))


@shared_task
def count(message_ids: list[str], picture: str) -> dict[str, Any]:
    """The end of a mailing: how many mails went out."""
    return {"picture": picture, "sent": len(message_ids)}


@shared_task(bind=True)
def send_mailing(self: Task[Any, Any], recipients: list[str], picture: str) -> Any:
    """Run :func:`mailing` in place of this task, so that its id gives the mailing's result."""
    return self.replace(mailing(recipients, picture))
