import asyncio

from celery.result import AsyncResult
from fastapi import FastAPI

from thumbs.jobs import app as celery
from thumbs.jobs import make

app = FastAPI()


@app.post("/thumbnails", status_code=202)
async def order(url: str, size: int = 128):
    """Sending is a short wait for the broker: in a thread, so that the loop goes on."""
    result = await asyncio.to_thread(make.delay, url, size)
    return {"id": result.id}


@app.get("/thumbnails/{task_id}")
def state(task_id: str):
    """FastAPI runs a plain function in a thread of its own."""
    result = AsyncResult(task_id, app=celery)
    return {"state": result.state, "result": result.result if result.successful() else None}
