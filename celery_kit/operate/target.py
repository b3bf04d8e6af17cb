"""The app that a tool works on: CELERY_APP, in the form that `celery -A` takes, or `app`.

`celery -A celery_kit.operate.target …` is Celery's command line on that app.
"""

from celery_kit.base import target

app = target.find(target.name())
