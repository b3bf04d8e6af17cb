"""celery-kit: one Celery task codebase for every broker and pool.

`celery -A app …` finds :data:`app` here. Settings: `app/config.py`. Tasks: every module in `app/tasks/`.
"""

from celery_kit.worker import early  # noqa: F401  # before all other imports: it patches a worker's sockets

# isort: split

from celery_kit import Kit


class App(Kit):
    """The app, with short task names: `app/tasks/mail.py:send_email` is `mail.send_email`.

    Source: Celery's user guide, "Changing the automatic naming behavior".
    """

    def gen_task_name(self, name: str, module: str) -> str:
        """The name of a task whose decorator gives none."""
        return super().gen_task_name(name, module.removeprefix("app.tasks."))


app = App("celery-kit")
app.config_from_object("app.config")
