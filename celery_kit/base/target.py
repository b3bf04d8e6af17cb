"""Whose tasks: the app that this process has, and the project that it stands in."""

import os
from pathlib import Path
from typing import Any

from celery import _state
from celery.exceptions import ImproperlyConfigured

_HERE = Path(__file__).resolve().parents[2]
#: The project: the checkout that this package lies in, or the folder that a program which has it installed was started in.
ROOT = _HERE if (_HERE / "Makefile").exists() else Path.cwd()


def name() -> str:
    """The app of this project, as `celery -A` takes it: CELERY_APP, `app` without."""
    return os.environ.get("CELERY_APP") or "app"


def current() -> Any:
    """The app of this process. Raises ImproperlyConfigured where it has none of the kit's."""
    app: Any = _state.get_current_app()
    if not hasattr(app, "spooled"):
        raise ImproperlyConfigured("this process has no app of celery-kit: import the module that makes it, such as `app`")
    return app
