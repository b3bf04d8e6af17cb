"""Plain Celery, for the same faults: an app with its two addresses and no other settings."""

import os

from celery import Celery

app = Celery("plain", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.imports = ["fault_probe"]
