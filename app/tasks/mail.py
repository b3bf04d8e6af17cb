"""Messages to people: I/O-bound work, tried again with back-off while the server is away."""

import json
import os
import smtplib
import socket
import urllib.error
import urllib.request
from email.message import EmailMessage
from typing import Any

from celery import Task, shared_task

TIMEOUT = 10.0  # seconds, for one connection

AWAY = (
    ConnectionError,
    TimeoutError,
    socket.gaierror,
    smtplib.SMTPConnectError,
    smtplib.SMTPServerDisconnected,
    urllib.error.URLError,
)
PATIENT: dict[str, Any] = {
    "bind": True,
    "autoretry_for": AWAY,
    "dont_autoretry_for": (urllib.error.HTTPError,),  # the gateway answered: asking again does not help
    "retry_backoff": 1,  # seconds, doubled each time
    "retry_backoff_max": 60,
    "max_retries": 5,
}


@shared_task(**PATIENT)
def send_email(self: Task[Any, Any], to: str, subject: str, body: str = "", sender: str = "celery-kit@localhost") -> str:
    """Send one mail through SMTP_HOST:SMTP_PORT. Gives its Message-ID, which is the task's id: a second delivery shows.

    Raises smtplib.SMTPRecipientsRefused and its kin when the server says no; connection failures are retried.
    """
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, to, subject
    message["Message-ID"] = f"<{self.request.id}@celery-kit>"
    message.set_content(body)
    with smtplib.SMTP(os.environ.get("SMTP_HOST") or "mail", int(os.environ.get("SMTP_PORT") or 1025), timeout=TIMEOUT) as smtp:
        smtp.send_message(message)
    return str(message["Message-ID"])


@shared_task(**PATIENT)
def send_sms(self: Task[Any, Any], to: str, text: str) -> str:
    """Send one SMS through the HTTP gateway at SMS_GATEWAY_URL. Gives the id that the gateway gave it.

    Raises urllib.error.HTTPError when the gateway says no; connection failures are retried.
    """
    request = urllib.request.Request(
        os.environ.get("SMS_GATEWAY_URL") or "http://mail:8025/sms",
        data=json.dumps({"id": self.request.id, "to": to, "text": text}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        return str(json.load(response)["id"])
