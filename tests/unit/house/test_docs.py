"""What the pages name is there: tables as the code has them, make targets, variables, files, headings, commands, tests."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from celery_kit.base.target import ROOT
from docs.conf import PAGES, root_doc
from docs.generate import TABLES, renewed
from docs.reference import variables, whys
from tests.faults.table import FAULTS

#: Pages for people; the reports and docs/matrix.md are written by programs.
WRITTEN = [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN.remove(ROOT / "docs/matrix.md")
ALL = [*WRITTEN, ROOT / "CHANGELOG.md", ROOT / "docs/matrix.md", *sorted((ROOT / "docs/reports").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", MAKEFILE, re.MULTILINE))
#: In capitals, and neither a variable nor a name of the code's: what other programs say.
SAID_BY_OTHERS = {"COMPOSE_PARALLEL_LIMIT", "PRECONDITION_FAILED"}

#: A command of README, and the test that runs it. A command that a person alone can run says why.
RUN_BY = {
    "make demo": "tests/deploy/test_embedded.py::test_the_demo_ends_with_real_results_on_every_pool",
    "make up": "tests/deploy/test_stacks.py::test_up_send_result_down",
    "make send": "tests/deploy/test_stacks.py::test_up_send_result_down",
    "make result": "tests/deploy/test_stacks.py::test_up_send_result_down",
    "make status": "tests/deploy/test_status.py::test_status_tells_each_state_of_a_stack",
    "make down": "tests/deploy/test_stacks.py::test_up_send_result_down",
    "make urls": "tests/deploy/test_stacks.py::test_a_program_of_this_machine_gets_the_addresses",
    "make doctor": "tests/deploy/test_doctor.py::test_the_faults_of_a_stack",
    "make dead": "tests/deploy/test_embedded.py::test_what_cannot_be_run_is_listed_sent_back_and_dropped",
    "make pause": "tests/deploy/test_embedded.py::test_a_pause_outlives_the_stack",
    "make logs": "tests/deploy/test_stacks.py::test_beat_sends_by_its_timetable",
    "make ps": "tests/deploy/test_embedded.py::test_what_runs_is_watched_and_worked_on",
    "make top": "tests/deploy/test_embedded.py::test_what_runs_is_watched_and_worked_on",
    "make balance": "tests/deploy/test_balance.py::test_what_cannot_be_balanced_is_said",
    "make dev": "tests/deploy/test_embedded.py::test_what_runs_is_watched_and_worked_on",
    "make contract": "tests/deploy/test_versions.py::test_a_break_is_found_before_anything_runs",
    "make k8s": "tests/deploy/test_kubernetes.py::test_what_a_user_types",
    "docker compose": "tests/deploy/test_stacks.py::test_a_compose_file_works_alone",
    "celery -A app worker": "tests/deploy/test_embedded.py::test_a_worker_needs_no_make",
    "python -m app.worker": "tests/deploy/test_embedded.py::test_a_worker_needs_no_make",
}
#: The same, of commands that only other pages name.
RUN_BY_TOO = {
    "make resume": "tests/deploy/test_embedded.py::test_a_pause_outlives_the_stack",
    "make certificates": "tests/security/test_tls.py::test_new_certificates_while_tasks_run",
    "make migrate": "tests/deploy/test_migrate.py::test_another_broker_takes_over",
    "make passwords": "tests/security/test_passwords.py::test_new_passwords_while_tasks_run",
    "make push": "tests/deploy/test_registry.py::test_what_is_pushed_is_pinned",
    "make stack": "tests/swarm/test_swarm.py::test_images_are_replaced_under_load",
    **{
        f"make {command}": "tests/deploy/test_kubernetes.py::test_what_a_user_types" for command in ("k8s-secrets", "k8s-check")
    },
    "make wheel": "tests/examples/conftest.py::python",
    **{
        f"make {command}": "tests/security/test_supply.py::test_what_a_user_types_about_an_image"
        for command in ("sbom", "sign", "verify", "audit")
    },
    "make plan": "tests/unit/operate/test_plan.py::test_what_a_user_types",
    "make backup": "tests/deploy/test_backup.py::test_what_was_there_is_there_again",
    "make restore": "tests/deploy/test_backup.py::test_what_was_there_is_there_again",
    "make forward": (
        "tests/producer/test_spool.py::test_a_task_is_accepted_while_the_broker_is_away_and_forwarded_by_a_command"
    ),
}
#: These are the tests themselves, measure for half an hour, or change the machine or the locks of whoever types them.
NOT_IN_A_TEST = {"make test", "make test-matrix", "make bench", "make engine", "make lock"}
#: Likewise, of other pages; `make images` is what each target of tests in containers begins with.
NOT_IN_A_TEST_EITHER = re.compile(r"make (bench|docs|docs-matrix|docs-probe|docs-site|images|lint|test-\w+)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code(text: str) -> list[str]:
    """What stands in a page as code: blocks, and words between backticks."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [*blocks, *re.findall(r"`([^`\n]+)`", rest)]


def headings(text: str) -> set[str]:
    """The anchors of a page, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(text: str) -> list[str]:
    prose = re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]


def commands(text: str) -> set[str]:
    """The commands that a page names: make and its target, and those that do without make."""
    found = set()
    for part in code(text):
        part = re.sub(r"#.*", "", part)
        found |= {f"make {target}" for target in re.findall(r"\bmake ([a-z][a-z0-9…-]*)", part)}
        found |= set(re.findall(r"docker compose(?= )|celery -A app worker|python -m app\.worker", part))
    return found


@pytest.mark.parametrize("page", ALL, ids=name)
def test_the_tables_are_those_of_the_code(page: Path) -> None:
    text = page.read_text()
    assert renewed(text) == text, "run 'make docs'"
    assert set(re.findall(r"<!-- table: (\w+) -->", text)) <= TABLES.keys()


@pytest.mark.parametrize("page", ALL, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in headings(target.read_text()), f"{link}: no such heading"


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_every_make_target_is_one(page: Path) -> None:
    named = {one.removeprefix("make ") for one in commands(page.read_text()) if one.startswith("make ")}
    assert {one for one in named if not one.endswith("…")} <= TARGETS


def test_every_variable_of_the_pages_is_one_of_the_code() -> None:
    """Words in capitals that are given a value or have an underscore."""
    sources = [
        ROOT / "Makefile",
        *(path for folder in ("app", "celery_kit", "deploy", "tests", "bench") for path in (ROOT / folder).rglob("*")),
    ]
    sources += [ROOT / ".env.example", *ROOT.glob("compose.*.yaml")]
    skip = {".pyc", ".png", ".html", ".md", ".json"}
    known = set[str]()
    for source in sources:
        if source.is_file() and source.suffix not in skip:
            known |= set(re.findall(r"\b[A-Z][A-Z0-9_]{2,}\b|\b(?:ID|TO)\b", source.read_text(errors="ignore")))
    for page in WRITTEN:
        for part in code(page.read_text()):
            named = set(re.findall(r"\b([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|[A-Z][A-Z0-9]+(?==))", part))
            assert named - SAID_BY_OTHERS <= known, f"{name(page)}: {part}"


def test_every_variable_that_the_code_reads_is_on_the_page_of_settings() -> None:
    page = "\n".join(code((ROOT / "docs/settings.md").read_text()))
    within = {
        "COMPOSE_PROFILES",
        "CODE",
        "CELERY_WORKER_QUEUES",
        "CODE_IMAGE",
        "PACKAGES",
        "CATCHER_HOST",
        "CATCHER_SMTP_PORT",
        "CATCHER_HTTP_PORT",
        "PROMETHEUS_WEB_FILE",
        "MONITOR_USER",
        "BEAT_HEARTBEAT_FILE",
        "KUBERNETES_SERVICE_HOST",  # Kubernetes' own, in each pod
        "KUBERNETES_SERVICE_PORT",
    }
    read = re.compile(r"""environ(?:\.get\(|\[|\.setdefault\()"([A-Z_]+)"|\b(?:value|choose|whole_number)\("([A-Z_]+)\"""")
    found = {
        one or two
        for folder in ("app", "celery_kit")
        for path in (ROOT / folder).rglob("*.py")
        for one, two in read.findall(path.read_text())
    }
    for file in [
        *ROOT.glob("compose.*.yaml"),
        *(ROOT / "deploy").rglob("compose*/*.yaml"),
        *(ROOT / "deploy/brokers").rglob("*.yaml"),
    ]:
        found |= set(re.findall(r"\$\{([A-Z_]+)", file.read_text()))
    assert len(found) > 40
    assert not {one for one in found - within if not re.search(rf"\b{one}\b", page)}


def test_the_defaults_of_the_example_are_the_codes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every line of .env.example in the environment the profile is what it is without."""
    from celery_kit.profile import Profile

    given = {key: default for key, default, _ in variables()}
    where = {
        "BROKER": "embedded",
        "CELERY_BROKER_URL": "redis://127.0.0.1:1",
        "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/1",
        "LOG_FORMAT": "json",
    }
    monkeypatch.chdir(ROOT)
    assert Profile.from_environ({**given, **where}) == Profile.from_environ(where)


def test_every_setting_has_its_reason_or_its_variable() -> None:
    """The table's last cell, or `by` in the one before."""
    for table in ("settings_app", "settings_brokers", "settings_backends", "settings_fast"):
        for row in TABLES[table]().splitlines()[2:]:
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert cells[-1] or "by `" in cells[-2], row


def test_a_reason_is_the_comment_beside_a_line_or_above_it() -> None:
    source = "# for both\na = 1\nb = 2\nc = d = 3  # its own\ne = 4\n\nf = 5\n# two\n# lines\ng = 6\n_hidden = 7  # no\n"
    assert whys(source) == {
        "a": "for both", "b": "for both", "c": "its own", "d": "its own", "e": "for both", "f": "", "g": "two lines",
    }  # fmt: skip


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_every_shell_command_can_be_read_by_a_shell(page: Path) -> None:
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        done = subprocess.run(["sh", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{block}"


def test_both_readmes_name_the_same_commands() -> None:
    english, chinese = (commands((ROOT / page).read_text()) for page in ("README.md", "README.zh-CN.md"))
    assert english == chinese


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    """And that test runs it: its source, or that of a function of its file which it calls, has the word."""
    named = commands((ROOT / "README.md").read_text())
    assert named == {*RUN_BY, *NOT_IN_A_TEST}, "a command that no test runs, or one that README does not name any more"
    for command, test in {**RUN_BY, **RUN_BY_TOO}.items():
        file, _, function = test.partition("::")
        functions = {
            node.name: ast.unparse(node)
            for node in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(node, ast.FunctionDef)
        }
        source = functions[function]
        source += "".join(functions[called] for called in re.findall(r"\b(\w+)\(", source) if called in functions)
        assert command.split()[-1] in source, f"{test} does not run {command}"


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_every_command_of_a_page_is_run_by_a_test(page: Path) -> None:
    named = {one for one in commands(page.read_text()) - NOT_IN_A_TEST if not one.endswith("…")}
    assert not {one for one in named - {*RUN_BY, *RUN_BY_TOO} if not NOT_IN_A_TEST_EITHER.fullmatch(one)}


def test_every_fault_of_the_suite_is_in_the_handbook() -> None:
    prose = re.sub(r"<!-- table:.*?<!-- end -->", "", (ROOT / "docs/failures.md").read_text(), flags=re.DOTALL)
    assert {fault.name for fault in FAULTS} <= set(re.findall(r"`(\w+)`", prose))


def test_what_the_handbook_says_that_you_see_is_said_by_the_code() -> None:
    """The first column of its first table: words of commands, and the names of alerts."""
    text = (ROOT / "docs/failures.md").read_text()
    said = "\n".join(
        path.read_text() for path in (*(ROOT / "celery_kit").rglob("*.py"), ROOT / "deploy/observability/alerts.yml")
    )
    rows = text.partition("## By what you see")[2].partition("\n## ")[0].splitlines()[4:]
    seen = {words for row in rows for words in re.findall(r"`([^`]+)`", row.split("|")[1] if "|" in row else "")}
    celerys = {"EXITED", "PENDING", "PRECONDITION_FAILED", "OperationalError", "unhealthy"}  # Docker's, Celery's, RabbitMQ's
    assert len(seen) > 8
    assert not {words for words in seen - celerys if words not in said}


def test_every_page_is_in_the_sites_table_of_contents() -> None:
    pages = {name(page).removesuffix(".md") for page in ALL}
    assert pages == {root_doc, *(page.rpartition("<")[2].rstrip(">") for pages in PAGES.values() for page in pages)}
