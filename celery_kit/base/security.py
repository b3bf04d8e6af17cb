"""Signed messages, as a switch: SECURITY_KEY, SECURITY_CERTIFICATE and SECURITY_CERT_STORE, all three, turn them on.

Every process then signs what it sends and refuses what none of the store's certificates signed: tasks, results, events and
remote control. Messages are signed, not encrypted. Source: Celery's user guide, "Security: Message Signing".
"""

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery_kit.base.refusals import refuse

SIGNED = "auth"  # Celery's name of the serializer


@dataclass(frozen=True)
class Signing:
    """What a process signs with and trusts. `cert_store`: a directory of certificates, or a wildcard for them."""

    key: str
    certificate: str
    cert_store: str

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "Signing | None":
        """None where none of the three is set. Refuses some without the others, and what cannot be read."""
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

    def settings(self) -> dict[str, Any]:
        """Celery's settings for it. Results too: a signed task whose result is not would be refused by its sender."""
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


def connect(app: Any) -> None:
    """Have `app` sign and verify as soon as its settings are there, if they say so."""
    app.on_after_configure.connect(_set_up, weak=False)
    if app.configured:
        _set_up(app)


def _set_up(sender: Any, **_: Any) -> None:
    if not sender.conf.security_key:
        return
    try:
        sender.setup_security(serializer=os.environ.get("TASK_SERIALIZER") or "json")  # of what is signed
    except Exception as error:  # Celery logs what a signal's receiver raises, and would go on
        refuse(f"messages cannot be signed: {error}")
