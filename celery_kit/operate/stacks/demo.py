"""`make demo`: run sample tasks on the embedded broker: a picture, a sound, mails, an SMS, a workflow, statistics."""

import json
import os
import struct
import time
import urllib.request
import wave
from importlib import import_module
from math import pi, sin
from typing import Any

from celery.result import AsyncResult
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from celery_kit.base.login import header
from celery_kit.base.refusals import refuse
from celery_kit.operate.groups import Group
from celery_kit.operate.stacks.embedded import MAIL_PASSWORD, environment, state
from celery_kit.operate.stacks.local import Local
from celery_kit.results import BACKENDS

PEOPLE = [f"person{number}@example.com" for number in range(1, 9)]
WAIT_SECONDS = 60.0
NEXT = """\
  make up BROKER=embedded POOL=threads   stays: make send, result, down
  make up BROKER=rabbitmq POOL=gevent    the same tasks in containers
  app/tasks/                             put your own tasks here"""


def samples() -> tuple[str, str]:
    """Write a picture and a sound below DATA_DIR. Returns their paths, relative to DATA_DIR."""
    from celery_kit.files import inside

    Image.linear_gradient("L").resize((1600, 900)).convert("RGB").save(inside("demo/picture.png"))
    with wave.open(str(inside("demo/sound.wav")), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(44_100)
        tone = (int(32_000 * sin(2 * pi * 440 * n / 44_100) * n / 88_200) for n in range(88_200))
        sound.writeframes(b"".join(struct.pack("<h", value) for value in tone))
    return "demo/picture.png", "demo/sound.wav"


def work(chords: bool) -> "list[tuple[str, str, AsyncResult[Any]]]":
    """Send the sample tasks. `chords`: whether the result backend supports chords, which the workflow needs.

    Returns (name of the task, description, result) for each.
    """
    import_module("celery_kit.operate.target")  # create this process' app, only now that the environment names the stack
    from celery_kit.produce.send import send, send_many

    picture, sound = samples()
    sent = [
        (f"mail to {to.partition('@')[0]}", send("mail.send_email", [to, "Hello from celery-kit", "It works."]))
        for to in PEOPLE[:4]
    ]
    sent.append(("SMS to +1 555 0100", send("mail.send_sms", ["+1 555 0100", "It works."])))
    sizes = (64, 256, 512)
    ids = send_many("media.thumbnail", [(picture, size) for size in sizes])
    sent += [(f"1600x900 picture to {size}", _by_id(task_id)) for size, task_id in zip(sizes, ids, strict=True)]
    sent.append(("2 s of sound to peaks", send("media.waveform", [sound], {"points": 8})))
    if chords:
        sent.append((f"picture, {len(PEOPLE)} mails, count", send("workflows.send_mailing", [PEOPLE, picture])))
    names = ["mail.send_email"] * 4 + ["mail.send_sms"] + ["media.thumbnail"] * 3 + ["media.waveform", "workflows.send_mailing"]
    return [(name, what, result) for name, (what, result) in zip(names, sent, strict=False)]


def _by_id(task_id: str) -> "AsyncResult[Any]":
    from celery_kit.operate.target import app

    result: AsyncResult[Any] = app.AsyncResult(task_id)
    return result


def show(pool: str, backend: str) -> None:
    """Run the sample tasks and print their results.

    They run on the embedded stack of this checkout if it is running. Otherwise a stack is started, and stopped at the end.
    Refuses if a demo is running, and if a task has no result after WAIT_SECONDS. Exits with 1 if a task fails.
    """
    console = Console()
    stack, begun = Local(), time.monotonic()
    about = state()
    if about and about.get("owner") == "demo":
        refuse(f"a demo runs already (process {about['pid']}); wait for its end, or stop it with 'make down'")
    try:
        if about is None:
            os.environ.setdefault("REPORT_MEGABYTES", "1")  # the worker records its runs, for the statistics below
            console.print(f"Starting a broker (Valkey), a worker on {pool}, beat and a mail catcher …")
            stack.up([Group(pool=pool)], backend, owner="demo")
        else:
            console.print(f"Joining the embedded stack that runs already (pool {about['pool']}).")
        running = state() or refuse("the embedded stack ended while the demo began; its log is .kit/embedded/stack.log")
        os.environ.update(environment(running))
        caught_before = len(_caught(running))
        rows = _watch(console, work(BACKENDS[running["backend"]].chords))
        from celery_kit.produce.send import send

        report: Any = send("reports.daily_statistics").get(timeout=WAIT_SECONDS)
        _print(console, rows, report["tasks"], _caught(running)[caught_before:])
        where = "the embedded stack goes on; 'make down' stops it" if about else "everything was stopped again"
        console.print(f"Done in {time.monotonic() - begun:.1f} s; {where}. Next:", highlight=False)
        console.print(NEXT, highlight=False)
    finally:
        if about is None:
            stack.down(volumes=False)


def _watch(console: Console, sent: "list[tuple[str, str, AsyncResult[Any]]]") -> list[tuple[str, str, str, str]]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    deadline = time.monotonic() + WAIT_SECONDS
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("working", total=len(sent))
        while (done := sum(result.ready() for _, _, result in sent)) < len(sent):
            progress.update(bar, completed=done)
            if time.monotonic() > deadline:
                refuse(f"{len(sent) - done} tasks had no result after {WAIT_SECONDS:g} s; see .kit/embedded/worker1.log")
            time.sleep(0.02)
        progress.update(bar, completed=done)
    return [(name, what, result.state, json.dumps(result.result, default=repr)) for name, what, result in sent]


def _print(console: Console, rows: list[tuple[str, str, str, str]], runs: dict[str, dict[str, int]], caught: list[Any]) -> None:
    table = Table(title="What came back", box=SIMPLE_HEAD)
    for heading in ("task", "asked for", "state"):
        table.add_column(heading, no_wrap=True)
    table.add_column("result", overflow="ellipsis")
    room = max(16, console.width - 64)
    for name, what, end, value in rows:
        table.add_row(
            name,
            what,
            f"[{'green' if end == 'SUCCESS' else 'red'}]{end}[/]",
            Text(value if len(value) < room else f"{value[: room - 1]}…"),
        )
    console.print(table)
    total = sum(task["runs"] for task in runs.values())
    kinds = {kind: sum(message["kind"] == kind for message in caught) for kind in ("mail", "sms")}
    console.print(
        f"Caught: {kinds['mail']} mails, {kinds['sms']} SMS. Last 24 hours, by reports.daily_statistics: {total} runs."
    )
    if any(end != "SUCCESS" for _, _, end, _ in rows):
        raise SystemExit(1)


def _caught(about: dict[str, Any]) -> list[Any]:
    account = {"Authorization": header("kit", MAIL_PASSWORD.read_text())}
    request = urllib.request.Request(f"http://127.0.0.1:{about['http']}/messages", headers=account)
    with urllib.request.urlopen(request, timeout=5) as response:
        return list(json.load(response))
