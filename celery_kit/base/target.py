"""Whose tasks: the app that this process has, and the project that it stands in."""

import os
import sys
from pathlib import Path
from typing import Any

from celery import Celery, _state
from celery.app.utils import find_app
from celery.exceptions import ImproperlyConfigured

from celery_kit.base.refusals import refuse

_HERE = Path(__file__).resolve().parents[2]
#: The project: the checkout that this package lies in, or the folder that a program which has it installed was started in.
ROOT = _HERE if (_HERE / "Makefile").exists() else Path.cwd()
ALLOWED = "a module, as `shop` or `shop.celery`, or module:name, as `shop.celery:app`, of a Celery app (docs/adopt.md)"


def name() -> str:
    """The app of this project, as `celery -A` takes it: CELERY_APP, `app` without."""
    return os.environ.get("CELERY_APP") or "app"


def find(given: str) -> Any:
    """The Celery app that `given` names, as `celery -A` finds it, as the app of this process.

    Refuses (one line, exit code 2) what cannot be imported, and what is no app.
    """
    if (here := str(Path.cwd())) not in sys.path:  # a console script has its own folder there
        sys.path.insert(0, here)
    try:
        found: Any = find_app(given)
    except Exception as error:  # a module may raise anything
        reason = next(iter(str(error).splitlines()), "")
        refuse(f"CELERY_APP={given} cannot be imported ({type(error).__name__}: {reason}); allowed: {ALLOWED}")
    if not isinstance(found, Celery):
        refuse(f"CELERY_APP={given} is no Celery app, but of type {type(found).__name__}; allowed: {ALLOWED}")
    found.set_current()
    return found


def current() -> Any:
    """The app of this process. Raises ImproperlyConfigured where it has none of the kit's."""
    app: Any = _state.get_current_app()
    if not hasattr(app, "spooled"):
        raise ImproperlyConfigured(
            "the app of this process is not one of celery-kit: import the module that makes it, by Kit() or install()"
        )
    return app
