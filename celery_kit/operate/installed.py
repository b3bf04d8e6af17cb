"""The app that APP names, with the kit installed: CELERY_APP names this module in a stack of a user's codebase.

Each process of the stack installs the kit in a plain Celery app here. An app that is a Kit already is not changed.
"""

import os

from celery_kit.base import target
from celery_kit.kit import install

app = target.find(os.environ.get("APP") or "app")
install(app)
