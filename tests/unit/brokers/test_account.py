"""The account on a server: a variable, or a file that is read again each time that a client connects."""

from pathlib import Path

import pytest

from celery_kit.brokers.contract import ROLES, account, current, is_of_a_file
from celery_kit.profile import Profile


@pytest.mark.parametrize(
    ("text", "found"),
    [("secret", ("kit", "secret")), ("secret\n", ("kit", "secret")), ("se:cret\nworker\n", ("worker", "se:cret"))],
)
def test_a_password_and_its_user(text: str, found: tuple[str, str], tmp_path: Path) -> None:
    """A password alone is that of `kit`."""
    (file := tmp_path / "broker").write_text(text)
    assert account({"BROKER_PASSWORD_FILE": str(file)}, "BROKER") == found
    assert account({"BROKER_PASSWORD": text}, "BROKER") == found


def test_nothing_is_an_empty_password() -> None:
    assert account({}, "RESULTS") == ("kit", "")


def test_a_file_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        account({"BROKER_PASSWORD_FILE": str(tmp_path / "none")}, "BROKER")
    assert ended.value.code == 2
    assert f"BROKER_PASSWORD_FILE={tmp_path / 'none'} cannot be read" in capsys.readouterr().err


def test_a_file_is_read_again(tmp_path: Path) -> None:
    """Also by who has the account of the renewal before."""
    (file := tmp_path / "broker").write_text("first\nworker")
    first = account({"BROKER_PASSWORD_FILE": str(file)}, "BROKER")
    assert current(*first) == first and is_of_a_file(*first)
    file.write_text("second\nworker-2")
    assert current(*first) == ("worker-2", "second") == current("worker-2", "second")
    file.write_text("third\nworker")
    assert current(*first) == current("worker-2", "second") == ("worker", "third")
    file.unlink()
    assert current(*first) == first


def test_another_account_is_used_as_it_is(tmp_path: Path) -> None:
    assert current("kit", "of a URL") == ("kit", "of a URL") and not is_of_a_file("kit", "of a URL")


@pytest.mark.parametrize(
    ("broker", "url"), [("rabbitmq", "amqp://worker:p%40ss@broker:5672/kit"), ("redis", "redis://worker:p%40ss@broker:6379/0")]
)
def test_a_url_has_the_account_of_its_file(broker: str, url: str, tmp_path: Path) -> None:
    (tmp_path / "broker").write_text("p@ss\nworker")
    (tmp_path / "results").write_text("results")
    files = {f"{role}_PASSWORD_FILE": str(tmp_path / role.lower()) for role in ("BROKER", "RESULTS")}
    chosen = Profile.from_environ({"BROKER": broker, **files, "RABBITMQ_DEFAULT_USER": "other"})
    assert chosen.broker_url == url
    assert chosen.result_backend == "redis://kit:results@results:6379/1"


@pytest.mark.parametrize("role", ROLES)
def test_the_operators_name_is_none_of_the_roles(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Two users of one name, each with the rights of the other."""
    with pytest.raises(SystemExit):
        Profile.from_environ({"BROKER": "rabbitmq", "RABBITMQ_DEFAULT_USER": role})
    (line,) = capsys.readouterr().err.splitlines()
    assert f"RABBITMQ_DEFAULT_USER={role} is not allowed; any name but those of the roles: producer, " in line
