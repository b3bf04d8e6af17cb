"""celery-kit: one Celery task codebase for every broker and pool.

`celery -A app …` finds :data:`app` here. Settings: `app/config.py`. Tasks: every module in `app/tasks/`.
"""

from celery_kit.worker import early  # noqa: F401  # first of all

# isort: split

from typing import Any

from celery_kit import Kit


class App(Kit):
    """With short task names: `app/tasks/mail.py:send_email` is `mail.send_email`.

    Source: Celery's user guide, "Changing the automatic naming behavior".
    """

    def gen_task_name(self, name: str, module: str) -> Any:
        return super().gen_task_name(name, module.removeprefix("app.tasks."))


app = App("celery-kit")
app.config_from_object("app.config")
