"""Start Flower: `python -m celery_kit.operate.look.monitor [options of flower]`.

All of it, its metrics included, requires the user MONITOR_USER and the password in MONITOR_PASSWORD_FILE. This process itself
becomes Flower, so that neither its environment nor its command line has the password.
"""

import json
import os
import sys
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import bcrypt
from celery import __main__ as celery
from flower import command
from flower.app import Flower
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import OutputTransform, RequestHandler

from celery_kit.base.login import HEADERS, Login, Refused
from celery_kit.base.refusals import refuse
from celery_kit.worker.start import APP

#: How many bytes of a password bcrypt reads, and the power of two of its rounds: a guess takes a quarter second.
READ, ROUNDS = 72, 12
#: The scripts in Flower's pages, one for each value of its option auto_refresh. Other scripts are files.
SCRIPTS = (b"\nvar autorefresh = 0;\n", b"\nvar autorefresh = 1;\n")
_HASHES = " ".join(f"'sha256-{b64encode(sha256(script).digest()).decode()}'" for script in SCRIPTS)
POLICY = (
    f"default-src 'self'; script-src 'self' {_HASHES}; style-src-attr 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class _Refusal(RequestHandler):
    """Answers who is not let in."""

    def initialize(self, refused: Refused) -> None:
        self.refused = refused

    def check_xsrf_cookie(self) -> None:
        """Whoever is refused needs no cookie for it."""

    def prepare(self) -> None:
        self.set_status(self.refused.status)
        for name, value in {**self.refused.headers, "Content-Type": "text/plain"}.items():
            self.set_header(name, value)
        self.finish(f"{self.refused.text}\n")


class _Headers(OutputTransform):
    """Adds the headers of every answer."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        headers.update(HEADERS | {"Content-Security-Policy": POLICY})
        return status_code, headers, chunk


def guarded(user: str, password: str) -> type[Flower]:
    """A Flower that looks at no request before its log-in. Flower's own would leave its metrics open."""
    login = Login(user, password)

    class Guarded(Flower):  # type: ignore[misc]  # it has no types
        def __init__(self, **given: object) -> None:
            super().__init__(**given)
            self.options.basic_auth = [f"{user}:{password}"]  # without one, its API is closed to everybody
            self.add_transform(_Headers)

        def find_handler(self, request: HTTPServerRequest, **given: object) -> object:
            if refused := login.refusal(str(request.remote_ip), request.headers.get("Authorization")):
                return self.get_handler_delegate(request, _Refusal, {"refused": refused})
            return super().find_handler(request, **given)

    return Guarded


def password() -> str:
    """The password in MONITOR_PASSWORD_FILE. Refuses a file that is missing or empty."""
    file = os.environ.get("MONITOR_PASSWORD_FILE") or refuse("MONITOR_PASSWORD_FILE names no file: Flower is not started open")
    try:
        found = Path(file).read_text().strip()
    except OSError as error:
        refuse(f"MONITOR_PASSWORD_FILE={file} cannot be read: {error.strerror}")
    return found or refuse(f"MONITOR_PASSWORD_FILE={file} is empty: Flower is not started open")


def of_prometheus(user: str, password: str) -> str:
    """Prometheus' file for `--web.config.file`: the same log-in, its page in no frame. Refuses a password that is too long."""
    if len(password.encode()) > READ:
        refuse(f"the password in MONITOR_PASSWORD_FILE has {len(password.encode())} bytes; allowed: {READ}")
    headers = {name: HEADERS[name] for name in ("X-Frame-Options", "X-Content-Type-Options")}
    headers["Content-Security-Policy"] = "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(ROUNDS)).decode()
    return json.dumps({"basic_auth_users": {user: hashed}, "http_server_config": {"headers": headers}})


def main() -> None:
    """Become Flower. Before, where PROMETHEUS_WEB_FILE names a file, write Prometheus' log-in into it."""
    user, secret = os.environ.get("MONITOR_USER") or "kit", password()
    if file := os.environ.get("PROMETHEUS_WEB_FILE"):
        (draft := Path(f"{file}.new")).write_text(of_prometheus(user, secret))
        draft.replace(file)
    if getattr(command, "Flower", None) is not Flower:
        refuse(
            "this version of Flower starts in another way than the kit knows: it is not started open; pip install flower==2.2.0"
        )
    command.Flower = guarded(user, secret)
    sys.argv[:] = [celery.__file__, "-A", APP, "flower", "--address=0.0.0.0", "--port=5555", *sys.argv[1:]]
    celery.main()


if __name__ == "__main__":
    main()
