"""A worker of the app that CELERY_APP names: `python -m celery_kit.operate.worker [options of celery worker]`."""

from celery_kit.worker import early  # noqa: F401  # first of all

# isort: split

from celery_kit.operate.target import app
from celery_kit.worker.start import main

if __name__ == "__main__":
    main(app)
