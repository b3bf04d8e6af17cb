"""Versions of installed packages."""

import pytest
from packaging.version import Version

from celery_kit.base import versions


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"celery": Version("5.7.0"), "amqp": Version("5.4.2"), "kombu": Version("5.8.0rc1")}
    monkeypatch.setattr(versions, "installed", known.get)


def test_versions_in_range_meet_every_need() -> None:
    assert versions.unmet({"celery": "==5.7.*", "amqp": ">=5.3,<6"}) == ""


def test_what_is_unmet_is_named_with_its_version() -> None:
    found = versions.unmet({"celery": ">=5.8", "amqp": ">=5.3,<6", "redis": ">=5"})
    assert found == "celery 5.7.0 is not >=5.8, redis >=5 is not installed"


@pytest.mark.parametrize(("version", "typed"), [(Version("0.1.0"), "celery-kit dead"), (None, "make dead")])
def test_a_worker_advises_the_command_that_exists_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, version: Version | None, typed: str
) -> None:
    monkeypatch.setattr(versions, "installed", lambda _: version)
    assert versions.command("dead") == typed


def test_a_release_candidate_counts_as_its_version() -> None:
    assert versions.unmet({"kombu": ">=5.7"}) == ""
    assert versions.unmet({"kombu": "==5.7.*"}) == "kombu 5.8.0rc1 is not ==5.7.*"
