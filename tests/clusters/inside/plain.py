"""Plain Celery on a cluster: an app with its addresses, late acknowledgement and quorum queues, and no other settings."""

import os

from celery import Celery

app = Celery("plain", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.update(task_acks_late=True, task_default_queue_type="quorum", task_create_missing_queue_type="quorum")
app.conf.imports = ["fault_probe"]
