"""Tasks that are made of other tasks: a chain with a chord, which sends a group of mails and then counts them."""

from typing import Any

from celery import Task, chain, chord, group, shared_task
from celery.canvas import Signature

from app.tasks.mail import send_email
from app.tasks.media import thumbnail


def mailing(recipients: list[str], picture: str) -> Signature[Any]:
    """A chain: shrink the picture, then mail everybody, then count the mails. Needs a result backend with chords."""
    mails = [send_email.si(to, "A picture for you", f"{picture} is ready") for to in recipients]
    return chain(thumbnail.si(picture), chord(group(mails), count.s(picture=picture)))


@shared_task
def count(message_ids: list[str], picture: str) -> dict[str, Any]:
    """The end of a mailing. Returns how many mails were sent."""
    return {"picture": picture, "sent": len(message_ids)}


@shared_task(bind=True)
def send_mailing(self: Task[Any, Any], recipients: list[str], picture: str) -> Any:
    """Replace this task by :func:`mailing`, so that the task's id has the mailing's result."""
    return self.replace(mailing(recipients, picture))
