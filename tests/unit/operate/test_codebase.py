"""A codebase of the user's own in a stack: what is read and refused before anything is built or started."""

import subprocess
from pathlib import Path

import pytest

from celery_kit.base.facts import Member, Queue, Server, vitals_of
from celery_kit.base.target import ROOT
from celery_kit.operate.look.status import Snapshot, lines, packed, seen, unpacked
from celery_kit.operate.stacks.codebase import INSTALLED, About, Codebase, about_here, chosen
from celery_kit.operate.stacks.images import image
from celery_kit.operate.stacks.requirements import conflicts, flattened, pins, reason


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop" / "shop").mkdir(parents=True)
    (tmp_path / "shop" / "one.py").touch()
    return tmp_path / "shop"


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_none_is_this_repositorys_app() -> None:
    assert chosen({}) is chosen({"APP": "", "SOURCE": "", "REQUIREMENTS": ""}) is None


@pytest.mark.parametrize("app", ["shop", "shop.celery", "shop.celery:app", "one:app"])
def test_what_is_named_is_found(shop: Path, app: str) -> None:
    """The folder as seen from the project, or by its whole path."""
    found = chosen({"APP": app, "SOURCE": str(shop)})
    assert found == Codebase(app, shop)
    assert Codebase.from_note(found.noted()) == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"APP": "shop:app"}, "SOURCE is missing"),
        ({"SOURCE": "{}"}, "APP is missing"),
        ({"REQUIREMENTS": "{}/r.txt"}, "APP is missing"),
        ({"APP": "shop app", "SOURCE": "{}"}, "APP=shop app is not allowed; a module, as shop or shop.celery"),
        ({"APP": "shop:app", "SOURCE": "{}/none"}, "/none is no folder"),
        ({"APP": "shop:app", "SOURCE": "{}/shop"}, "has no module shop, neither shop/ nor shop.py; SOURCE={} has it"),
        ({"APP": "other:app", "SOURCE": "{}"}, "has no module other, neither other/ nor other.py"),
        ({"APP": "shop:app", "SOURCE": "{}", "REQUIREMENTS": "{}/r.txt"}, "REQUIREMENTS={}/r.txt is no file"),
        ({"APP": "shop:app", "SOURCE": "{}", "ENV_FILE": "{}/env"}, "ENV_FILE={}/env is no file"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(
    shop: Path, capsys: pytest.CaptureFixture[str], given: dict[str, str], said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        chosen({name: value.format(shop) for name, value in given.items()})
    assert said.format(shop) in refused(capsys)


def test_images_of_two_codebases_have_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders of one name, two apps of one folder; IMAGE is the user's own name for them."""
    of = [Codebase("shop:app", Path("/a/shop")), Codebase("shop:app", Path("/b/shop")), Codebase("shop:two", Path("/a/shop"))]
    monkeypatch.delenv("IMAGE", raising=False)
    names = {image("gevent", one) for one in of}
    assert len(names) == 3 and all(name.startswith("celery-kit-shop-") and name.endswith(":gevent") for name in names)
    monkeypatch.setenv("IMAGE", "registry/shop")
    assert image("gevent", of[0]) == "registry/shop:gevent"


def test_a_process_of_this_machine_imports_it_with_the_kit_in_it(shop: Path) -> None:
    (shop / "env").write_text("PRICE=7\nAPP=another\n")
    told = Codebase("shop:app", shop, env_file=shop / "env").here()
    assert told["PRICE"] == "7"
    assert told["APP"] == "shop:app" and told["CELERY_APP"] == INSTALLED
    assert told["PYTHONPATH"].split(":") == [str(shop), str(ROOT)]
    assert f"CELERY_APP={INSTALLED}" in (ROOT / "deploy/Dockerfile").read_text()


def test_requirements_become_one_file(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("# the base\none==1 \\\n    --hash=sha256:aa  # why\n\n")
    (tmp_path / "all.txt").write_text("-r base.txt\n--extra-index-url https://example.com/#x\ntwo>=2; python_version > '3'\n")
    found = [line.split() for line in flattened(tmp_path / "all.txt")]
    assert found[0] == ["one==1", "--hash=sha256:aa"]
    assert [line[0] for line in found[1:]] == ["--extra-index-url", "two>=2;"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-r none.txt", "none.txt cannot be read: No such file"),
        ("-r all.txt", "name each other: -r all.txt"),
        ("-c other.txt", "'-c other.txt' is not supported"),
        ("-e .", "'-e .' is a folder of this machine"),
        ("./wheels/one", "'./wheels/one' is a folder of this machine"),
        ("one @ file:///one", "'one @ file:///one' is a folder of this machine"),
    ],
)
def test_requirements_that_a_build_cannot_see_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    (tmp_path / "all.txt").write_text(f"{line}\n")
    with pytest.raises(SystemExit, match="2"):
        flattened(tmp_path / "all.txt")
    assert said in refused(capsys)


def test_a_pin_against_the_kits_own_names_both(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("celery==5.6.3\nKombu>=5\nredis<5; python_version < '3'\nrequests==2.31.0\n")
    version, lock = pins("worker", "solo")["celery"]
    assert lock == "requirements/worker.txt", "solo has no lock of its own"
    assert conflicts(file, "worker", "solo") == [
        f"{file} asks for celery==5.6.3, the kit pins celery=={version} (requirements/worker.txt): change one of them"
    ]


RESOLVED = """
#14 1.90 ERROR: Cannot install -r /requirements/requirements.txt (line 1) because these versions conflict.
#14 1.90
#14 1.90 The conflict is caused by:
#14 1.90     fakeredis 2.10.0 depends on redis<5 and >=4
#14 1.90     The user requested (constraint) redis==8.1.0
#14 1.90
#14 1.90 To fix this you could try to:
#14 ERROR: process "/bin/sh -c pip-beside" did not complete successfully: exit code: 1
"""
MISSING = """
#14 1.2 ERROR: Could not find a version that satisfies the requirement nothing==1 (from versions: none)
#14 1.3 ERROR: No matching distribution found for nothing==1
ERROR: failed to solve: process "/bin/sh" did not complete successfully
"""
HASHES = """
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package versions, update.
    one==0.9.0 from https://index/one.whl:
        Expected sha256 00
"""
UNPINNED = """
ERROR: Hashes are required in --require-hashes mode, but they are missing from some requirements.
    two==2 --hash=sha256:aa
"""


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (RESOLVED, "fakeredis 2.10.0 depends on redis<5 and >=4, and the kit pins redis==8.1.0"),
        (MISSING, "No matching distribution found for nothing==1"),
        (HASHES, "These packages do not match the hashes from the requirements file: one==0.9.0"),
        (UNPINNED, "hashes are given, so each package needs its own: two==2 --hash=sha256:aa"),
        ('#14 ERROR: process "/bin/sh" did not complete\nERROR: failed to solve: no space left', ""),
    ],
)
def test_what_pip_says_is_one_line(output: str, why: str) -> None:
    assert reason(output) == why


def test_an_app_that_cannot_be_loaded_is_one_line(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codebase = Codebase("shop:app", shop)
    said = "a warning of theirs\ncelery-kit: the tasks of shop cannot be loaded: No module named 'tabulate'\n"
    with pytest.raises(SystemExit, match="2"):
        About.of(codebase, subprocess.CompletedProcess((), 2, "printed by theirs\n", said))
    line = refused(capsys)
    assert f"shop:app in {shop}: the tasks of shop cannot be loaded: No module named 'tabulate'; REQUIREMENTS=" in line
    loaded = subprocess.CompletedProcess((), 0, 'printed by theirs\n{"tasks": ["add"], "contradictions": []}\n', "")
    assert About.of(codebase, loaded) == About(["add"], [])


def test_a_look_from_within_a_stack_is_a_look_from_here() -> None:
    """What a process of the stack found comes as JSON, and the servers' addresses become this machine's."""
    broker = Server("Broker", "1", [Queue("celery", 3, 1)], faults=[("wrong", "mend it")], url="redis://broker:6379/0")
    worker = vitals_of({"pool": "solo", "consuming": ["celery"], "tasks": ["add"], "registered": 1})
    found = Snapshot(broker, "does not answer: no", {"w@there": worker}, [Member("worker", "running", True, "w@there")])
    assert unpacked(packed(found)) == found
    assert unpacked(packed(Snapshot(broker, None, {}, []))).results is None
    here = seen(found, lambda url: url.replace("broker:6379", "127.0.0.1:1"))
    assert isinstance(here.broker, Server) and here.broker.url == "redis://127.0.0.1:1/0"


def test_the_tasks_of_the_workers_are_listed_as_far_as_a_screen_goes() -> None:
    def last(names: list[str], number: int) -> str:
        worker = vitals_of({"consuming": ["celery"], "tasks": names, "registered": number})
        return lines(Snapshot(Server("Broker", "1"), None, {"w@there": worker}, []))[-1]

    assert last(["shop.add", "totals"], 2) == "tasks     shop.add, totals"
    many = last([f"task{number:03}" for number in range(100)], 250)
    assert many.endswith("task029, and 220 more") and "task030" not in many


@pytest.mark.parametrize("queues", ["", "shop,payments,reports"])
def test_an_app_of_plain_celery_says_what_it_is_before_anything_starts(queues: str) -> None:
    """Its tasks; the queues that tasks are routed to and nobody consumes."""
    codebase = Codebase("shop.celery:app", ROOT / "examples" / "shop")
    urls = {"CELERY_BROKER_URL": "redis://broker:6379/0", "CELERY_RESULT_BACKEND": "redis://results:6379/1"}
    about = about_here(codebase, {**urls, "BROKER": "redis", "POOL": "solo", "CELERY_WORKER_QUEUES": queues})
    assert {"payments.charge", "reports.price", "shop.tasks.reserve"} <= set(about.tasks)
    routed = "tasks are routed to payments, reports, which no worker of this stack consumes: QUEUES=payments,reports,shop"
    assert [line for line in about.contradictions if routed in line] == [f"{routed} has them do so"] * (not queues)
