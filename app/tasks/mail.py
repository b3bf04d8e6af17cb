"""Messages to people: I/O-bound work, retried with back-off while the server is unavailable."""

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

UNAVAILABLE = (
    ConnectionError,
    TimeoutError,
    socket.gaierror,
    smtplib.SMTPConnectError,
    smtplib.SMTPServerDisconnected,
    urllib.error.URLError,
)
RETRIED: dict[str, Any] = {
    "bind": True,
    "autoretry_for": UNAVAILABLE,
    "dont_autoretry_for": (urllib.error.HTTPError,),  # the gateway answered, so that a retry does not help
    "retry_backoff": 1,  # seconds, doubled each time
    "retry_backoff_max": 60,
    "max_retries": 5,
}


@shared_task(**RETRIED)
def send_email(self: Task[Any, Any], to: str, subject: str, body: str = "", sender: str = "celery-kit@localhost") -> str:
    """Send one mail through SMTP_HOST:SMTP_PORT. Returns its Message-ID, which contains the task's id, so that duplicates show.

    Raises smtplib.SMTPRecipientsRefused and similar errors if the server refuses it; connection failures are retried.
    """
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, to, subject
    message["Message-ID"] = f"<{self.request.id}@celery-kit>"
    message.set_content(body)
    with smtplib.SMTP(os.environ.get("SMTP_HOST") or "mail", int(os.environ.get("SMTP_PORT") or 1025), timeout=TIMEOUT) as smtp:
        smtp.send_message(message)
    return str(message["Message-ID"])


@shared_task(**RETRIED)
def send_sms(self: Task[Any, Any], to: str, text: str) -> str:
    """Send one SMS through the HTTP gateway at SMS_GATEWAY_URL. Returns the gateway's id of the message.

    Raises urllib.error.HTTPError if the gateway refuses it; connection failures are retried.
    """
    request = urllib.request.Request(
        os.environ.get("SMS_GATEWAY_URL") or "http://mail:8025/sms",
        data=json.dumps({"id": self.request.id, "to": to, "text": text}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        return str(json.load(response)["id"])
