"""The app that APP names, with the kit installed: CELERY_APP names this module in a stack of a user's codebase.

Each process of the stack installs the kit in a plain Celery app here. An app that is a Kit already is not changed. Celery's own
variables name the stack's servers, which take precedence over the app's settings. They are set here, because the passwords in
them are not for the engine to show.
"""

import os

from celery_kit.base import target
from celery_kit.kit import install
from celery_kit.profile import Profile

if os.environ.get("BROKER"):
    _servers = Profile.from_environ()
    os.environ |= {"CELERY_BROKER_URL": _servers.broker_url, "CELERY_RESULT_BACKEND": _servers.result_backend}
app = target.find(os.environ.get("APP") or "app")
install(app)
