"""What pages and published ports give to who does not log in, and what a browser may do with them."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import requests

from tests.security.checks.contract import AbsentError, Attempt, Check, Plant, Subject
from tests.security.test_containers import docker
from tests.security.test_pages import CARELESS, FRAMES, OURS, PROBES, headers_missing, looked_at, page

#: What each published port is.
NAMES = {
    1025: "the mail catcher gives mail to SMTP clients",
    5555: "Flower shows a page",
    5672: "the broker lets `guest` in",
    6379: "the server answers",
    8025: "the mail catcher shows mail",
    9090: "Prometheus shows a page",
    15672: "RabbitMQ's management interface answers",
}
BROKERS: dict[int, tuple[str, ...]] = {5672: ("rabbitmq",), 15672: ("rabbitmq",)}
#: What a browser is not told, if a header is missing.
HEADERS = {
    "frame": "another site shows a page in a frame, in an old browser",
    "frame-ancestors": "another site shows a page in a frame",
    "object-src": "a page loads what another site put into it",
    "type": "a browser takes a page for a script",
}
METHODS = ("HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")
ELSEWHERE = "http://elsewhere.example"


class Instead(Subject):
    """A stack with careless pages: each of its ports is the one of a careless server."""

    def port(self, inside: int) -> int:
        return int(self.urls["careless"])


def careless(inside: int) -> Plant:
    """A careless server in the place of what is on that port."""

    @contextmanager
    def made(subject: Subject) -> Iterator[Subject]:
        with CARELESS.get(PROBES[inside], page)() as port:
            fields = {name: getattr(subject, name) for name in Subject.__dataclass_fields__}
            yield Instead(**{**fields, "urls": {**subject.urls, "careless": str(port)}})

    return Plant("a careless server", made)


def gives(inside: int) -> Attempt:
    """An attempt: the port gives something to who does not log in."""
    return lambda subject: PROBES[inside](subject.port(inside))


def there(subject: Subject, *wanted: int) -> list[int]:
    """Those of the pages that the subject has, by their ports in the stack."""
    found = []
    for inside in wanted:
        with suppress(AbsentError):
            subject.port(inside)
            found.append(inside)
    if not found:
        raise AbsentError("no page")
    return found


def not_told(header: str) -> Attempt:
    """An attempt: a page, behind the log-in or its refusal, does not send that header."""

    def attempt(subject: Subject) -> list[int]:
        found = []
        for inside in there(subject, *FRAMES):
            secret = (subject.pages or {}).get(inside)
            for account in {None, ("kit", secret) if secret else None}:
                if header in headers_missing(subject.port(inside), FRAMES[inside], account):
                    found.append(inside)
        return sorted(set(found))

    return attempt


def guesses(inside: int) -> Attempt:
    """An attempt: thirty wrong passwords are looked at, one after the other, or no password is asked for."""

    def attempt(subject: Subject) -> str:
        port = subject.port(inside)
        looked = looked_at(port)
        if not looked and requests.get(f"http://127.0.0.1:{port}/", timeout=10).ok:
            return "it asks for no password"
        return f"{looked} of 30" if looked > 10 else ""

    return attempt


def other_methods(subject: Subject) -> list[str]:
    """An attempt: a page does something by another method for who does not log in. 405 and 501: it knows no such method."""
    found = []
    for inside in there(subject, 5555, 8025, 9090):
        for method in METHODS:
            for path in ("", "api/workers", "messages"):
                url = f"http://127.0.0.1:{subject.port(inside)}/{path}"
                code = requests.request(method, url, timeout=10, allow_redirects=False).status_code
                found += [f"{inside} {method} /{path}"] if code < 300 else []
    return found


def read_by_others(subject: Subject) -> list[int]:
    """An attempt: a script of another site may read a page."""
    found = []
    for inside in there(subject, *FRAMES):
        secret = (subject.pages or {}).get(inside)
        url, account = f"http://127.0.0.1:{subject.port(inside)}/{FRAMES[inside]}", ("kit", secret) if secret else None
        answer = requests.get(url, headers={"Origin": ELSEWHERE}, auth=account, timeout=10)
        found += [inside] if answer.headers.get("Access-Control-Allow-Origin") in ("*", ELSEWHERE) else []
    return found


def odd_paths(subject: Subject) -> list[str]:
    """An attempt: a page is given for its path in other words."""
    found = []
    for inside in there(subject, 5555, 8025, 9090):
        for path in ("//", "/./", "/%2e/", "/x/../", "/?", "/;x", "/%00", "/static/../", "http://127.0.0.1/", "/METRICS", "*"):
            connection = http.client.HTTPConnection("127.0.0.1", subject.port(inside), timeout=10)
            with suppress(OSError, http.client.HTTPException):
                connection.request("GET", path)
                answer = connection.getresponse()
                found += [f"{inside} {path}"] if answer.status < 300 and answer.read() else []
            connection.close()
    return found


def from_stack(subject: Subject) -> list[str]:
    """An attempt: another container of the stack sees a page without its password."""
    ask = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).status)"
    worker, found = subject.service("worker"), []
    for place in ("flower:5555/", "flower:5555/metrics", "mail:8025/messages", "prometheus:9090/metrics"):
        said = docker("exec", worker.name, "python", "-c", ask, f"http://{place}", check=False)
        found += [place] if said == "200" else []
    return found


def guests_page(subject: Subject) -> bool:
    """An attempt: `guest` administrates by the management interface."""
    url = f"http://127.0.0.1:{subject.port(15672)}/api/users"
    return requests.get(url, auth=("guest", "guest"), timeout=10).ok


def floods(subject: Subject) -> str:
    """An attempt: an SMS of 100 MB is read."""
    try:
        url = f"http://127.0.0.1:{subject.port(8025)}/sms"
        answer = requests.post(url, data=b"x" * 100_000_000, headers={"Content-Type": "application/json"}, timeout=20)
    except requests.ConnectionError:
        return ""
    return f"answered with {answer.status_code}" if answer.ok else ""


@contextmanager
def everybody(subject: Subject) -> Iterator[Subject]:
    """A page for everybody, whatever its path and method."""

    class Anything(BaseHTTPRequestHandler):
        def answer(self) -> None:
            remaining = int(self.headers["Content-Length"] or 0)
            while remaining > 0:
                remaining -= len(self.rfile.read(min(remaining, 1 << 20)))
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok" if self.command != "HEAD" else b"")

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_TRACE = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Anything) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        fields = {name: getattr(subject, name) for name in Subject.__dataclass_fields__}
        yield Instead(**{**fields, "urls": {**subject.urls, "careless": str(server.server_port)}})
        server.shutdown()


EVERYBODY = Plant("a page for everybody", everybody)
ONLY_RABBITMQ = ("rabbitmq",)
#: The guesses come last: for a minute after them, no right password is let in either.
ROWS = (
    *(
        Check("pages", f"without a log-in, {NAMES[inside]}", gives(inside), careless(inside), BROKERS.get(inside, ()))
        for inside in PROBES
    ),
    *(Check("pages", what, not_told(header), careless(5555)) for header, what in HEADERS.items()),
    Check("pages", "without a log-in, by another method", other_methods, EVERYBODY),
    Check("pages", "without a log-in, by the path in other words", odd_paths, EVERYBODY),
    Check("pages", "a script of another site reads a page", read_by_others, EVERYBODY),
    Check("pages", "another container of the stack sees a page without a log-in", from_stack),
    Check("pages", "`guest` administrates by the management interface", guests_page, None, ONLY_RABBITMQ),
    Check("pages", "an SMS of 100 MB is taken", floods, EVERYBODY),
    *(
        Check("pages", f"passwords are guessed as fast as they come, on port {inside}", guesses(inside), careless(inside))
        for inside in OURS
    ),
)
