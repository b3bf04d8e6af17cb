"""The app that APP names, with the kit in it: what CELERY_APP names in a stack that runs a codebase of the user's own.

An app of plain Celery gets the kit here, in each process of the stack; one that is a Kit already is taken as it is.
"""

import os
from typing import Any

from celery_kit.base import target
from celery_kit.kit import install

app: Any = target.find(os.environ.get("APP") or "app")
install(app)
