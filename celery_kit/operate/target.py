"""The app that a tool looks at: CELERY_APP, as `celery -A` takes it; `app` without."""

from typing import Any

from celery.app.utils import find_app

from celery_kit.base import target

app: Any = find_app(target.name())
