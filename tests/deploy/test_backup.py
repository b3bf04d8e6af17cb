"""`make backup` and `make restore` on running stacks, as a user types them. QUICK=1: on the embedded one alone.

Tasks of the queue `parked` have no worker before the backup: what waits is known, and what ran too early would show.
"""

import json
import os
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_kit.brokers import BROKERS
from celery_kit.operate.backup import ABOUT, copied
from tests.deploy.conftest import Checkout
from tests.harness.waiting import until

COPIED = [name for name in BROKERS if copied(name)]
EMBEDDED = [name for name in COPIED if not BROKERS[name].compose_file]
#: A program of the user's own. It sends tasks to a queue without a worker, one of them with an ETA, and prints their ids.
SENDS = """
import json
from celery_kit import Kit
app = Kit("own")
def send(name, *args, **options):
    return app.send_task(name, args, queue="parked", **options).id
print(json.dumps({
    "queued": [send("mail.send_email", "a@b.c", f"waited {n}", priority=n) for n in (0, 9, 5)],
    "delayed": [
        send("mail.send_email", "a@b.c", "later", countdown=3_600),
        send("mail.send_email", "a@b.c", "soon", countdown=60),
    ],
}))
"""


@pytest.fixture(autouse=True)
def nothing_left(checkout: Checkout) -> Iterator[None]:
    yield
    checkout.make("down", "VOLUMES=1", "YES=1")


def addresses(checkout: Checkout, role: str = "producer") -> dict[str, str]:
    return dict(line.split("=", 1) for line in checkout.make("urls", f"ROLE={role}").stdout.splitlines())


def sent(checkout: Checkout, task: str, args: str) -> str:
    """Send a task, wait until it has ended, and return its id."""
    done = checkout.make("send", f"TASK={task}", f"ARGS={args}")
    number = done.stdout.strip()
    until("it has ended", lambda: "PENDING" not in checkout.make("result", f"ID={number}", "WAIT=60").stdout, 90)
    return number


def subjects(checkout: Checkout) -> list[str]:
    """Of the mails that were caught since the stack started."""
    found: Any = json.loads(checkout.run("curl", "-sf", f"{addresses(checkout)['MAIL_URL']}messages").stdout)
    return sorted(message["subject"] for message in found)


def state(checkout: Checkout, number: str) -> str:
    return checkout.make("result", f"ID={number}").stdout.partition("\n")[0].split()[-1]


@pytest.mark.parametrize("broker", EMBEDDED if os.environ.get("QUICK") else COPIED)
def test_what_was_there_is_there_again(checkout: Checkout, broker: str) -> None:
    """Queued, delayed, failed and dead tasks, results, passwords. What ran before the backup does not run again."""
    words = [f"BROKER={broker}", "POOL=threads"]
    assert checkout.make("up", *words, "QUEUES=celery,parked").returncode == 0, "it declares the queue"
    assert checkout.make("down").returncode == 0
    assert checkout.make("up", *words).returncode == 0
    ran, failed = sent(checkout, "mail.send_email", '["a@b.c", "before"]'), sent(checkout, "media.thumbnail", '["none.jpg"]')
    given = checkout.run(sys.executable, "-c", SENDS, **addresses(checkout, "operator"))
    waiting = json.loads(given.stdout)
    passwords = addresses(checkout, "admin")
    needs_stop = any(row.version and not row.save for row in [BROKERS[broker].copy] if row)
    if needs_stop:
        assert "STOP=1 stops workers, beat and broker" in checkout.refusal(checkout.make("backup", f"OUT={broker}.tar"))
    done = checkout.make("backup", f"OUT={broker}.tar", *["STOP=1"] * needs_stop)
    assert done.returncode == 0 and ("ran on" in done.stdout) != needs_stop
    file = checkout.folder / f"{broker}.tar"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    after = sent(checkout, "mail.send_email", '["a@b.c", "after"]')
    assert subjects(checkout) == ["after", "before"], "the stack works on, and nothing of the queue ran"
    assert "'make down' takes it down" in checkout.refusal(checkout.make("restore", f"FILE={broker}.tar", "YES=1"))
    assert checkout.make("down").returncode == 0
    assert "YES=1 replaces it" in checkout.refusal(checkout.make("restore", f"FILE={broker}.tar"))
    assert checkout.make("down", f"BROKER={broker}", "VOLUMES=1").returncode == 0

    assert checkout.make("restore", f"FILE={broker}.tar").returncode == 0
    assert checkout.make("up", *words, "QUEUES=celery,parked").returncode == 0
    until("what waited has run", lambda: {"waited 0", "waited 5", "waited 9"} <= {*subjects(checkout)}, 90, every=1)
    assert [state(checkout, one) for one in waiting["queued"]] == ["SUCCESS"] * 3, "by the ids that they had"
    assert state(checkout, ran) == "SUCCESS" and state(checkout, failed) == "FAILURE"
    assert state(checkout, after) == "PENDING", "it is of later"
    assert failed in checkout.make("dead").stdout
    changed = {name for name, value in addresses(checkout, "admin").items() if passwords[name] != value}
    assert changed <= ({"MAIL_URL"} if BROKERS[broker].compose_file else {*passwords}), "passwords are the backup's"
    until("what was to run soon has run", lambda: "soon" in subjects(checkout), 150, every=2)
    assert subjects(checkout) == ["soon", "waited 0", "waited 5", "waited 9"], "each once, the one of an hour later not yet"
    assert state(checkout, waiting["delayed"][0]) == "PENDING"


@pytest.fixture(scope="module")
def archive(checkout: Checkout) -> Path:
    """A backup of the embedded stack, which is down, and whose data is there."""
    assert checkout.make("up", "POOL=solo").returncode == 0
    assert checkout.make("backup", "OUT=small.tar").returncode == 0
    assert checkout.make("down").returncode == 0
    return checkout.folder / "small.tar"


def forged(archive: Path, **changed: Any) -> bytes:
    """The archive with something else in its description."""
    new = archive.with_name("forged.tar")
    with tarfile.open(archive) as old, tarfile.open(new, "w") as out:
        for member in old:
            content = old.extractfile(member)
            assert content
            text = content.read()
            if member.name == ABOUT:
                text = json.dumps({**json.loads(text), **changed}).encode()
            member.size = len(text)
            (written := archive.with_name("part")).write_bytes(text)
            with written.open("rb") as part:
                out.addfile(member, part)
    return new.read_bytes()


def later(archive: Path) -> bytes:
    with tarfile.open(archive) as tar:
        content = tar.extractfile(ABOUT)
        assert content
        parts = json.load(content)["parts"]
    return forged(archive, parts={name: part | {"version": part["version"] and "999.0"} for name, part in parts.items()})


WRONG: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "nothing": (lambda _: b"", "it is no file of 'make backup'"),
    "no archive": (lambda _: b"hello\n" * 1_000, "it is no file of 'make backup'"),
    "the half": (lambda one: one.read_bytes()[: one.stat().st_size // 2], "it is no file of 'make backup', or not a whole one"),
    "one byte": (lambda one: one.read_bytes().replace(b" seq 1 ", b" seq 2 "), "its SHA-256 differs"),
    "another form": (lambda one: forged(one, format=99), "its format is 99"),
    "a number": (lambda one: forged(one, parts=7), "it is no file of 'make backup'"),
    "another broker": (lambda one: forged(one, broker="kafka"), "BROKER=kafka is not known"),
    "a later server": (later, "is of version 999.0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_archive_is_refused_and_nothing_is_changed(checkout: Checkout, archive: Path, case: str) -> None:
    make, said = WRONG[case]
    (checkout.folder / "wrong.tar").write_bytes(make(archive))
    data = checkout.folder / ".kit/embedded/valkey"
    data.mkdir(parents=True, exist_ok=True)
    (data / "mine").write_text("kept")
    assert said in checkout.refusal(checkout.make("restore", "FILE=wrong.tar", "YES=1"))
    assert (data / "mine").read_text() == "kept"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "FILE is missing; for example: make restore FILE="),
        (["FILE=none.tar"], "FILE=none.tar is not restored, and nothing was changed: No such file or directory"),
        (["FILE=app"], "FILE=app is not restored, and nothing was changed: Is a directory"),
        (["FILE=small.tar", "BROKER=redis"], "FILE=small.tar is of BROKER=embedded, and BROKER=redis is given"),
    ],
)
def test_what_cannot_be_restored_is_refused(checkout: Checkout, archive: Path, words: list[str], said: str) -> None:
    assert said in checkout.refusal(checkout.make("restore", *words))


def test_what_cannot_be_backed_up_is_refused(checkout: Checkout, archive: Path) -> None:
    assert "no stack runs" in checkout.refusal(checkout.make("backup"))
    assert checkout.make("up", "POOL=solo").returncode == 0
    assert "OUT=small.tar cannot be written: it is there" in checkout.refusal(checkout.make("backup", "OUT=small.tar"))
    assert "OUT=none/a.tar cannot be written" in checkout.refusal(checkout.make("backup", "OUT=none/a.tar"))
    assert "STOP=1 has no use here" in checkout.refusal(checkout.make("backup", "OUT=a.tar", "STOP=1"))
    assert not (checkout.folder / "a.tar").exists() and not list(checkout.folder.glob(".backup-*"))
