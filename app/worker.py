"""A worker by script: `python -m app.worker [options of celery worker]`."""

from app import app
from celery_kit.worker.start import main

if __name__ == "__main__":
    main(app)
