"""Signed messages. Setting SECURITY_KEY, SECURITY_CERTIFICATE and SECURITY_CERT_STORE, all three, turns them on.

Every process then signs the tasks, results, events and remote control that it sends, and refuses those that no certificate of
the store has signed. Messages are signed, not encrypted. Source: Celery's user guide, "Security: Message Signing".
"""

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from celery import Celery

from celery_kit.base.refusals import refuse
from celery_kit.base.types import Options

SIGNED = "auth"  # Celery's name of the serializer


@dataclass(frozen=True)
class Signing:
    """The files that a process signs with and trusts. `cert_store`: a directory of certificates, or a wildcard for them."""

    key: str
    certificate: str
    cert_store: str

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "Signing | None":
        """Read the three variables; None if none is set. Refuses one or two of them, and files that cannot be read."""
        names = ("SECURITY_KEY", "SECURITY_CERTIFICATE", "SECURITY_CERT_STORE")
        given = {name: environ.get(name) or "" for name in names}
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
        return cls(*given.values())

    def settings(self) -> Options:
        """Celery's settings for signed messages. They cover results, because a sender would refuse an unsigned one."""
        return {
            "security_key": self.key,
            "security_certificate": self.certificate,
            "security_cert_store": self.cert_store,
            "task_serializer": SIGNED,
            "result_serializer": SIGNED,
            "event_serializer": SIGNED,
            "accept_content": [SIGNED],
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
    if not sender.conf.security_key:
        return
    try:
        sender.setup_security(serializer=os.environ.get("TASK_SERIALIZER") or "json")  # the format of the signed content
    except Exception as error:  # Celery would log a receiver's exception and go on without signing
        refuse(f"messages cannot be signed: {error}")
