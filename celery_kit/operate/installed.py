"""The app that APP names, with the kit installed: CELERY_APP names this module in a stack of a user's codebase.

Each process of the stack installs the kit in a plain Celery app here. An app that is a Kit already is not changed. Celery's own
variables name the stack's servers, which take precedence over the app's settings. They are set here, because the passwords in
them are not for the engine to show.
"""

import os

from celery_kit.base import target
from celery_kit.kit import install
from celery_kit.profile import Profile

_unnamed = [name for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND") if not os.environ.get(name)]
if _unnamed and os.environ.get("BROKER"):
    _profile = Profile.from_environ()
    _urls = {"CELERY_BROKER_URL": _profile.broker_url, "CELERY_RESULT_BACKEND": _profile.result_backend}
    os.environ |= {name: _urls[name] for name in _unnamed}
app = target.find(os.environ.get("APP") or "app")
install(app)
