"""Signed messages. Setting SECURITY_KEY, SECURITY_CERTIFICATE and SECURITY_CERT_STORE, all three, turns them on.

Every process then signs the tasks, results, events and remote control that it sends, and refuses those that no certificate of
the store has signed. `celery_kit/base/signing.py` says what a signature covers. Messages are signed, not encrypted.
Source: Celery's user guide, "Security: Message Signing".
"""

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from celery import Celery

from celery_kit.base.messages import AUTH, EVENT
from celery_kit.base.refusals import choose, refuse, whole_number
from celery_kit.base.types import Options

if TYPE_CHECKING:
    from celery_kit.base.signing import Signer

#: Seconds for which a task's signature is valid, from the moment when it was made, or from the task's ETA.
WINDOW = 86_400


@dataclass(frozen=True)
class Signing:
    """The files that a process signs with and trusts. `cert_store`: a directory of certificates, or a wildcard for them.

    `window`: seconds for which a task's signature is valid. `body_only`: tasks of Celery's own serializer are accepted as well.
    """

    key: str
    certificate: str
    cert_store: str
    window: int = WINDOW
    body_only: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "Signing | None":
        """Read the variables; None if none of the three is set. Refuses one or two, bad values, and files it cannot read."""
        names = ("SECURITY_KEY", "SECURITY_CERTIFICATE", "SECURITY_CERT_STORE")
        given = {name: environ.get(name) or "" for name in names}
        window = whole_number("SECURITY_WINDOW", environ.get("SECURITY_WINDOW") or str(WINDOW), 60, 31_536_000, "seconds")
        body_only = choose("SECURITY_BODY_ONLY", environ.get("SECURITY_BODY_ONLY") or "0", ("0", "1")) == "1"
        if not any(given.values()):
            return None
        if missing := [name for name in names if not given[name]]:
            refuse(f"messages are signed by {', '.join(names)} together; not set: {', '.join(missing)}")
        for name in names[:2]:
            _check(name, given[name])
        store = given["SECURITY_CERT_STORE"]
        trusted = glob.glob(str(Path(store, "*")) if Path(store).is_dir() else store)  # noqa: PTH207  # as Celery reads it
        if not trusted:
            allowed = "a directory of certificates, or a wildcard such as /certs/*.pem"
            refuse(f"SECURITY_CERT_STORE={store} holds no certificate; allowed: {allowed}")
        for path in trusted:
            _check("SECURITY_CERT_STORE", path)
        key, certificate, store = given.values()
        return cls(key, certificate, store, window, body_only)

    def settings(self, accepted: Sequence[str]) -> Options:
        """The settings for signed messages: Celery's, and two of the kit's own. `accepted`: the serializers of task bodies.

        Tasks keep the serializer of their bodies: what signs them is a header. Results have Celery's form of signed content.
        """
        return {
            "security_key": self.key,
            "security_certificate": self.certificate,
            "security_cert_store": self.cert_store,
            "security_window": self.window,
            "security_body_only": self.body_only,
            "accept_content": [*accepted, AUTH] if self.body_only else [*accepted],
            "result_serializer": AUTH,
            "result_accept_content": [AUTH],
            "event_serializer": EVENT,
        }


def _check(name: str, path: str) -> None:
    try:
        Path(path).read_bytes()
    except OSError as error:
        refuse(f"{name}={path} cannot be read: {error.strerror}")


def connect(app: Celery) -> None:
    """Have `app` sign and verify messages once it is configured, if its settings name a key."""
    app.on_after_configure.connect(_set_up, weak=False)
    if vars(app)["configured"]:
        _set_up(app)


def _set_up(sender: Celery, **_: object) -> None:
    try:
        if found := signer(sender):
            found.register()
    except Exception as error:  # Celery would log a receiver's exception and go on without signing
        refuse(f"messages cannot be signed: {error}")


def signer(app: Celery) -> "Signer | None":
    """What signs and verifies the app's messages; None if its settings name no key. Raises an error for bad files."""
    if not app.conf.security_key:
        return None
    from celery_kit.base.signing import signer_of  # it needs the package cryptography

    return signer_of(app.conf, float(app.conf.get("security_window") or WINDOW))
