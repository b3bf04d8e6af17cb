"""The development mail catcher: takes every mail (SMTP) and SMS (HTTP), sends none on, and shows what it took.

    SMTP  CATCHER_SMTP_PORT (1025)
    HTTP  CATCHER_HTTP_PORT (8025): GET /messages, all of them as JSON; POST /sms {"id", "to", "text"}; GET / for people

Anybody may deliver, as to any mail server. To read what was delivered takes the user `kit` and the password in
CATCHER_PASSWORD_FILE: MAIL_PASSWORD, or one that is made at the first start. It keeps the newest 10,000 messages in memory, and
needs nothing but aiosmtpd and celery_kit/base/login.py.
"""

import json
import os
import secrets
import signal
import sys
from collections import deque
from email import message_from_bytes, policy
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller

from celery_kit.base.login import HEADERS, Login

USER = "kit"
#: The largest SMS, in bytes.
LARGEST = 65_536
messages: deque[dict[str, Any]] = deque(maxlen=10_000)


class Mailbox:
    """aiosmtpd's handler."""

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        mail = message_from_bytes(envelope.content, policy=policy.default)
        body = mail.get_body(("plain", "html"))
        messages.append(
            {
                "kind": "mail",
                "id": mail["Message-ID"],
                "to": list(envelope.rcpt_tos),
                "subject": mail["Subject"],
                "text": body.get_content() if body else "",
            }
        )
        return "250 Message accepted for delivery"


class Gateway(BaseHTTPRequestHandler):
    """The SMS gateway, and the list of messages."""

    login: Login
    server_version, sys_version = "catcher", ""
    timeout = 30  # of a client that says nothing, in seconds

    def do_POST(self) -> None:
        try:
            size = int(self.headers["Content-Length"])
            kind = self.headers.get_content_type()
            if not 0 <= size <= LARGEST or kind != "application/json":  # a type that no other site's form has
                raise ValueError
            sms = json.loads(self.rfile.read(size))
            messages.append({"kind": "sms", "id": sms["id"], "to": [sms["to"]], "subject": None, "text": sms["text"]})
        except (ValueError, KeyError, TypeError):
            self.close_connection = True
            self._answer(400, "application/json", json.dumps({"error": 'not {"id", "to", "text"}'}))
        else:
            self._answer(200, "application/json", json.dumps({"id": sms["id"]}))

    def do_GET(self) -> None:
        if refused := self.login.refusal(self.client_address[0], self.headers["Authorization"]):
            self._answer(refused.status, "text/plain", f"{refused.text}\n", refused.headers)
        elif self.path == "/messages":
            self._answer(200, "application/json", json.dumps(list(messages)))
        else:
            rows = "".join(
                f"<tr><td>{m['kind']}<td>{escape(', '.join(m['to']))}<td>{escape(m['subject'] or '')}<td>{escape(m['text'])}"
                for m in list(messages)[-200:]
            )
            self._answer(200, "text/html; charset=utf-8", f"<!doctype html><title>Caught</title><table>{rows}</table>")

    def _answer(self, status: int, kind: str, text: str, headers: dict[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        about = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        for name, value in {**HEADERS, **about, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a health check asks every few seconds."""


def password() -> str:
    """MAIL_PASSWORD, else what CATCHER_PASSWORD_FILE has, else a random one. The file has it afterwards."""
    file = Path(os.environ.get("CATCHER_PASSWORD_FILE", "/tmp/password"))
    file.touch(mode=0o600)
    found = os.environ.get("MAIL_PASSWORD") or file.read_text() or secrets.token_urlsafe(24)
    file.write_text(found)
    return found


def main() -> None:
    Gateway.login = Login(USER, password())
    host = os.environ.get("CATCHER_HOST", "0.0.0.0")
    smtp = Controller(Mailbox(), hostname=host, port=int(os.environ.get("CATCHER_SMTP_PORT", "1025")))
    http = ThreadingHTTPServer((host, int(os.environ.get("CATCHER_HTTP_PORT", "8025"))), Gateway)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    smtp.start()
    print(f"catching mail on port {smtp.port}, SMS on port {http.server_port}", flush=True)
    try:
        http.serve_forever()
    finally:
        smtp.stop()


if __name__ == "__main__":
    main()
