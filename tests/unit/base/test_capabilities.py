"""The rows of what earlier versions of Celery do differently."""

import pytest
from packaging.version import Version

from celery_kit.base import versions
from celery_kit.base.capabilities import EARLIER, earlier


@pytest.mark.parametrize(("celery", "features"), [("5.5.3", 4), ("5.6.3", 4), ("5.7.0", 0)])
def test_a_row_holds_where_its_versions_are_installed(monkeypatch: pytest.MonkeyPatch, celery: str, features: int) -> None:
    monkeypatch.setattr(versions, "installed", lambda _: Version(celery))
    assert len(earlier(EARLIER)) == features
    assert ("result_is_ignored" in earlier(EARLIER)) == bool(features)
