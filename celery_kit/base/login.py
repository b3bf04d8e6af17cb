"""The log-in of the pages that the kit's own processes serve, by HTTP's Basic scheme, and the headers of their answers.

It needs nothing but Python: the image of the mail catcher has no other part of the kit.
"""

import hmac
import math
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import sha256
from threading import Lock
from typing import NamedTuple

#: What a browser may do with a page: nothing of another site is loaded, run, or sent to, and no other site frames it.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Frame-Options": "deny",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
#: For how many seconds a wrong guess counts; how many of an address are free; the longest wait before its next one, in seconds.
COUNTED, FREE, LONGEST = 60.0, 3, 8.0
#: The addresses whose guesses are remembered.
ADDRESSES = 1_000


class Refused(NamedTuple):
    """The answer to who is not let in."""

    status: int
    headers: dict[str, str]
    text: str


class Login:
    """Lets in who names the user and the password.

    After FREE wrong guesses an address has to wait before the next one: 1 s, 2 s, 4 s, at most LONGEST. Meanwhile a guess is
    not looked at, be it right or wrong. A guess that is known to be wrong, as of a page that asks again and again, counts once.
    """

    def __init__(self, user: str, password: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._expected = f"{user}:{password}".encode()
        self._clock, self._lock = clock, Lock()
        #: By address: when each wrong guess was first made, by its hash; in order of time.
        self._wrong: dict[str, dict[bytes, float]] = {}

    def refusal(self, address: str, authorization: str | None) -> Refused | None:
        """The answer to a request with that header Authorization; None: let it in. `address`: of the client."""
        if not authorization:  # a browser's first request
            return _ask("log in")
        guess, now = sha256(authorization.encode()).digest(), self._clock()
        with self._lock:
            wrong = self._wrong[address] = self._counted(address, now)
            if guess in wrong:
                return _ask("wrong user or password")
            if (left := _wait(wrong) - now) > 0:
                return Refused(
                    429, {"Retry-After": str(math.ceil(left))}, f"too many wrong passwords; wait {math.ceil(left)} s"
                )
            if hmac.compare_digest(_credentials(authorization), self._expected):
                return None
            wrong[guess] = now
            while len(self._wrong) > ADDRESSES:
                del self._wrong[next(iter(self._wrong))]
        return _ask("wrong user or password")

    def _counted(self, address: str, now: float) -> dict[bytes, float]:
        found = self._wrong.pop(address, {})  # so that it becomes the newest
        return {guess: at for guess, at in found.items() if now - at < COUNTED}


def header(user: str, password: str) -> str:
    """The header Authorization of who logs in."""
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


def _ask(text: str) -> Refused:
    return Refused(401, {"WWW-Authenticate": 'Basic realm="celery-kit", charset="UTF-8"'}, text)


def _wait(wrong: dict[bytes, float]) -> float:
    """When the next guess is looked at."""
    if len(wrong) < FREE:
        return 0.0
    return next(reversed(wrong.values())) + min(2.0 ** (len(wrong) - FREE), LONGEST)


def _credentials(authorization: str) -> bytes:
    scheme, _, encoded = authorization.partition(" ")
    try:
        return b64decode(encoded, validate=True) if scheme.lower() == "basic" else b""
    except ValueError:
        return b""
