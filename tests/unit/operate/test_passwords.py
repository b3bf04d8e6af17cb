"""The accounts of roles, as the servers of a stack tell them; the engine's client is a stand-in, which answers from a list."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from celery_kit.operate.stacks import passwords

Said = tuple[int, str, str]
TOLD: Said = (0, "secret\nworker\n", "")


def server(name: str, mounted: bool = True, **state: bool) -> dict[str, Any]:
    return {
        "Id": name,
        "Name": f"/kit-{name}-1",
        "Config": {"Labels": {"com.docker.compose.service": name}, "Env": [f"KEY={name}"]},
        "State": {"Running": True, "Paused": False, **state},
        "Mounts": [{"Destination": passwords.START}] * mounted,
    }


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Said]]:
    """Sets what the servers say next; returns the list, which shrinks with each question."""

    def say(*given: Said) -> list[Said]:
        left = list(given)

        def ask(*argv: str) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess(argv, *left.pop(0))

        monkeypatch.setattr(passwords, "ask", ask)
        return left

    return say


def test_one_server_is_both_and_two_are_asked_each(answers: Callable[..., list[Said]]) -> None:
    answers(TOLD, TOLD)
    assert passwords.accounts([server("broker")], "worker") == dict.fromkeys(
        ("BROKER_PASSWORD", "RESULTS_PASSWORD"), "secret\nworker"
    )
    answers(TOLD, (0, "other\nworker\n", ""))
    both = passwords.accounts([server("broker"), server("results")], "worker")
    assert both == {"BROKER_PASSWORD": "secret\nworker", "RESULTS_PASSWORD": "other\nworker"}


@pytest.mark.parametrize(
    "lost", [(0, "", ""), (1, "", "the engine is busy"), (0, "secret\n", "")], ids=["nothing", "error", "half"]
)
def test_a_busy_engine_is_asked_again(answers: Callable[..., list[Said]], lost: Said) -> None:
    left = answers(lost, TOLD, TOLD)
    assert passwords.accounts([server("broker")], "worker")["BROKER_PASSWORD"] == "secret\nworker"
    assert not left


def test_what_is_not_told_is_refused_in_one_line(
    answers: Callable[..., list[Said]], capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty password would be refused later, by the server, which does not say why."""
    answers(*[(1, "", "cat: /var/lib/redis/worker: No such file\n")] * passwords.TRIES)
    with pytest.raises(SystemExit) as end:
        passwords.accounts([server("broker")], "worker")
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert "kit-broker-1 does not tell the account of worker: cat: /var/lib/redis/worker: No such file; 'make ps'" in line


@pytest.mark.parametrize(
    "one",
    [server("broker", Running=False), server("broker", Paused=True), server("broker", mounted=False)],
    ids=["down", "frozen", "of a former version"],
)
def test_who_cannot_answer_is_not_asked(answers: Callable[..., list[Said]], one: dict[str, Any]) -> None:
    answers()
    assert passwords.accounts([one], "worker") == {}
