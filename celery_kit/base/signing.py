"""What is signed, and what a signature covers.

Celery's own serializer signs a message's body. Here everything that decides is signed, once:

- A task: the header :data:`SIGNATURE` holds when it was signed, a number that is used once, who signed, and the signature. It
  covers all other headers (name, id, root and parent, ETA, expiry, retries, time limits …), where the answer goes, the content
  type, and the body by its digest. Not covered is what brokers and the kit change on the way (:data:`CHANGED`). The body itself
  is not changed, so that it is JSON, or whatever `task_serializer` says.
- A result: it has the form of Celery's own serializer, whose content has the task's id and state. Readers compare the id.
- A command of remote control, and an event: a first line like that header, then the content.
"""

import hashlib
import json
import secrets
import time
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple

from celery.app.utils import Settings
from celery.exceptions import SecurityError
from kombu.serialization import dumps, loads, register

from celery_kit.base.keys import Keys
from celery_kit.base.messages import AUTH, CONTROL, DELIVERIES, EVENT, NOTE, SIGNATURE, UNREADABLE
from celery_kit.base.types import Headers, Message

#: Headers that brokers and the kit add or change on the way; and the prefixes of others.
CHANGED = frozenset(
    (
        SIGNATURE, NOTE, UNREADABLE, DELIVERIES, "celery-kit-left-out", "compression", "redelivered", "x-death",
        "x-acquired-count",
    )
)  # fmt: skip
DEATHS = ("x-first-death-", "x-last-death-")
#: Headers that may be left out instead of being 0.
ZERO = ("retries", "replaced_task_nesting")
#: Seconds for which a command or an event is valid: also how far two machines' clocks may be apart.
SOON = 30.0
#: Between the parts of Celery's form.
SEPARATOR = b"\x00\x01"


class Stamp(NamedTuple):
    """When something was signed, in seconds since the epoch, as a text; a number that is used once; and who signed it."""

    at: str
    nonce: str
    signer: str

    @property
    def seconds(self) -> float:
        """When it was signed, in seconds since the epoch."""
        return float(self.at)


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode()


class Signer:
    """Signs and verifies for an app, by `keys`. `window`: seconds for which a task's signature is valid.

    `serializer`: of the content of results. `body_only`: whether a task is accepted whose body alone is signed.
    """

    def __init__(self, keys: Keys, window: float, serializer: str = "json", body_only: bool = False) -> None:
        self.keys, self.window, self.serializer, self.body_only = keys, window, serializer, body_only

    def stamped(self, purpose: str, content: bytes) -> str:
        """The line that signs `content` for a purpose."""
        pair = self.keys.pair
        stamp = Stamp(f"{time.time():.3f}", secrets.token_urlsafe(12), pair.name)
        signature = self.keys.sign(pair, _signed(purpose, stamp, content))
        return " ".join((stamp.at, stamp.nonce, _text(stamp.signer.encode()), _text(signature)))

    def opened(self, purpose: str, line: str, content: bytes) -> Stamp:
        """The stamp of a line that signs `content` for a purpose. Raises SecurityError for any other line."""
        try:
            at, nonce, signer, signature = line.split(" ")
            stamp, signed = Stamp(at, nonce, urlsafe_b64decode(signer).decode()), urlsafe_b64decode(signature)
            stamp.seconds  # noqa: B018  # raises an error if it is no number
        except (AttributeError, ValueError) as error:
            raise SecurityError("its signature is of another form") from error
        self.keys.verify(stamp.signer, _signed(purpose, stamp, content), signed)
        return stamp

    # Tasks

    def headers(
        self, headers: Headers, properties: Mapping[str, object], body: bytes | str, kind: str, encoding: str
    ) -> Headers:
        """The headers of a task's message with its signature. `kind`, `encoding`: those of the body, as it will arrive."""
        return {**headers, SIGNATURE: self.stamped("task", _covered(headers, properties, body, kind, encoding))}

    def task(self, message: Message) -> Stamp:
        """The stamp of a task's message, whose time is not checked. Raises SecurityError unless what decides was signed."""
        headers = message.headers
        line = headers.get(SIGNATURE)
        if not line:
            raise SecurityError("it is not signed")
        covered = _covered(headers, message.properties, message.body, message.content_type, message.content_encoding)
        return self.opened("task", line, covered)

    def accepts_body(self, message: Message) -> bool:
        """Whether a message without the header may do with the signature of its body, which is checked when it is read."""
        return self.body_only and SIGNATURE not in message.headers and message.content_type == "application/data"

    def renewed(self, message: Message) -> Headers:
        """The headers of a message that is sent again, signed again; as they are unless what decides was signed, whenever."""
        try:
            self.task(message)
        except SecurityError:
            return dict(message.headers)
        return self.headers(message.headers, message.properties, message.body, message.content_type, message.content_encoding)

    def until(self, stamp: Stamp, headers: Headers) -> float:
        """When a task's signature ends to be valid, in seconds since the epoch: the window after it was signed, or is due."""
        return max(stamp.seconds, due(headers)) + self.window

    # What is stored, commands and events

    def write(self, content: object) -> str:
        """Celery's form: the content, signed."""
        kind, encoding, data = dumps(content, serializer=self.serializer)
        body = data.encode() if isinstance(data, str) else data
        pair = self.keys.pair
        parts = (b64encode(pair.name.encode()), b64encode(self.keys.sign(pair, body)), kind.encode(), encoding.encode(), body)
        return b64encode(SEPARATOR.join(parts)).decode()

    def read(self, text: str | bytes) -> object:
        """The content of Celery's form. Raises SecurityError unless it was signed."""
        try:
            signer, signature, kind, encoding, body = b64decode(text).split(SEPARATOR, maxsplit=4)
            name, signed = b64decode(signer).decode(), b64decode(signature)
        except ValueError as error:
            raise SecurityError("it is not signed") from error
        self.keys.verify(name, body, signed)
        return loads(body, kind.decode(), encoding.decode(), force=True)

    def seal(self, purpose: str) -> Callable[[object], str]:
        """A function that writes content for a purpose, valid for SOON seconds."""

        def write(content: object) -> str:
            _, _, text = dumps(content, serializer="json")
            return f"{self.stamped(purpose, text.encode())}\n{text}"

        return write

    def unseal(self, purpose: str) -> Callable[[str | bytes], object]:
        """A function that reads what `seal` has written. It raises SecurityError for anything else, and for what is old."""

        def read(given: str | bytes) -> object:
            line, _, text = (given if isinstance(given, str) else given.decode()).partition("\n")
            stamp = self.opened(purpose, line, text.encode())
            if abs(age := time.time() - stamp.seconds) > SOON:
                raise SecurityError(f"it was signed {age:.0f} s ago, {SOON:.0f} at most are allowed")
            content = loads(text, "application/json", "utf-8", accept={"application/json"})
            return Command(content, nonce=stamp.nonce) if isinstance(content, dict) and purpose == CONTROL else content

        return read

    def register(self) -> None:
        """Make the serializers known to this process."""
        register(AUTH, self.write, self.read, content_type="application/data", content_encoding="utf-8")
        for name in (CONTROL, EVENT):
            register(name, self.seal(name), self.unseal(name), f"application/x-{name}", "utf-8")


class Command(dict[str, object]):
    """A command of remote control. `nonce`: the number of its signature."""

    def __init__(self, content: Mapping[str, object], nonce: str) -> None:
        super().__init__(content)
        self.nonce = nonce


def _signed(purpose: str, stamp: Stamp, content: bytes) -> bytes:
    return f"celery-kit {purpose}\n{stamp.at} {stamp.nonce}\n".encode() + content


def _covered(headers: Headers, properties: Mapping[str, object], body: bytes | str, kind: str, encoding: str) -> bytes:
    """What a task's signature covers, in one form, whatever a transport makes of it."""
    named = {
        name: value
        for name, value in headers.items()
        if value is not None and name not in CHANGED and not name.startswith(DEATHS) and (value != 0 or name not in ZERO)
    }
    digest = hashlib.sha256(body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body).hexdigest()
    to = [properties.get(name) or "" for name in ("reply_to", "correlation_id")]
    try:
        return json.dumps([named, to, kind, encoding, digest], sort_keys=True, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SecurityError("its headers cannot be signed") from error


def _plain(value: object) -> object:
    """A value that JSON has no form for; AMQP has a time without fractions of a second."""
    if isinstance(value, datetime):
        return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())
    return bytes(value).decode("utf-8", "replace") if isinstance(value, bytes | bytearray | memoryview) else str(value)


def due(headers: Headers) -> float:
    """When a message's task is due, in seconds since the epoch; 0 without an ETA that can be read."""
    try:
        at = datetime.fromisoformat(str(headers["eta"]))
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (KeyError, ValueError, OverflowError):
        return 0.0


def signer_of(conf: Settings, window: float) -> Signer:
    """The signer of an app's settings. `window`: seconds. Raises SecurityError or OSError for files that cannot be used."""
    files = conf.security_key, conf.security_certificate, conf.security_cert_store
    inner = "json" if conf.task_serializer == AUTH else str(conf.task_serializer)
    body_only = bool(conf.get("security_body_only"))
    return _signer(*files, conf.security_key_password, conf.security_digest, window, inner, body_only)


@cache
def _signer(
    key: str,
    certificate: str,
    store: str,
    password: str | bytes | None,
    digest: str,
    window: float,
    inner: str,
    body_only: bool,
) -> Signer:
    return Signer(Keys(key, certificate, store, password, digest), window, inner, body_only)
