"""The log-in that Flower and Prometheus are started with."""

import json
from pathlib import Path

import bcrypt
import pytest
from flower import command

from celery_kit.operate.look import monitor
from celery_kit.operate.look.monitor import READ, SCRIPTS, of_prometheus


@pytest.mark.parametrize("password", ["secret", "ä$,:'\"\\", "x" * READ])
def test_prometheus_takes_the_same_password(password: str) -> None:
    written = json.loads(of_prometheus("kit", password))
    hashed = written["basic_auth_users"]["kit"].encode()
    assert bcrypt.checkpw(password.encode(), hashed) and not bcrypt.checkpw(password.encode()[:-1], hashed)
    # Prometheus starts with no other ones, and with no other value of the second.
    assert set(written["http_server_config"]["headers"]) == {
        "Content-Security-Policy",
        "X-Frame-Options",
        "X-Content-Type-Options",
    }
    assert written["http_server_config"]["headers"]["X-Frame-Options"] == "deny"


def test_a_password_that_prometheus_would_cut_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        of_prometheus("kit", "ä" * 37)
    assert ended.value.code == 2 and "74 bytes; allowed: 72" in capsys.readouterr().err


def test_a_flower_that_cannot_be_guarded_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "password").write_text("secret")
    monkeypatch.setenv("MONITOR_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setattr(command, "Flower", object)
    with pytest.raises(SystemExit) as ended:
        monitor.main()
    assert ended.value.code == 2 and "not started open" in capsys.readouterr().err


def test_the_scripts_that_are_allowed_are_those_of_flowers_pages() -> None:
    """Another version of Flower may have others."""
    found = set()
    templates = Path(command.__file__).parent / "templates"
    for page in templates.rglob("*.html"):
        text = page.read_text()
        found |= {
            one.partition(">")[2].partition("</script>")[0].strip()
            for one in text.split("<script")[1:]
            if "src=" not in one[:80]
        }
    assert found == {"var autorefresh = {{ autorefresh }};"}
    assert [script.decode().strip() for script in SCRIPTS] == [f"var autorefresh = {value};" for value in (0, 1)]
