import os
import time
from pathlib import Path

from celery import Celery

app = Celery(
    "thumbs",
    broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/0"),
    backend=os.environ.get("CELERY_RESULT_BACKEND", "redis://localhost:6379/1"),
)


@app.task
def make(url, size):
    return {"url": url, "size": f"{size}x{size}"}


@app.task
def crop(url):
    raise ValueError(f"{url} is no picture")


@app.task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=1, retry_jitter=False)
def fetch(self, url):
    if self.request.retries < 2:
        raise ConnectionError(url)
    return f"{url} fetched at try {self.request.retries + 1}"


@app.task
def count(pictures):
    return len(pictures)


@app.task
def convert(frames):
    with Path(os.environ.get("THUMBS_LOG", "thumbs.log")).open("a") as log:
        log.write("convert started\n")
    for _ in range(frames):
        time.sleep(0.1)
    return frames
