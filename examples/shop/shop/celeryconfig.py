"""Settings of the shop's workers and of whoever sends to them."""

import os

broker_url = os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/0")
result_backend = os.environ.get("CELERY_RESULT_BACKEND", "redis://localhost:6379/1")

imports = ["shop.tasks"]
task_default_queue = "shop"
task_routes = {
    "payments.*": {"queue": "payments"},
    "reports.*": {"queue": "reports"},
}

timezone = "Europe/Berlin"
result_expires = 3600
