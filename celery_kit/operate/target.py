"""The app that a tool looks at: CELERY_APP, as `celery -A` takes it; `app` without.

`celery -A celery_kit.operate.target …` is Celery's command line on that app.
"""

from typing import Any

from celery_kit.base import target

app: Any = target.find(target.name())
