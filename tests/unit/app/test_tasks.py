"""The sample tasks on real files, without a broker."""

import json
import wave
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from app.tasks import media, reports
from celery_kit.observe import runs as noted


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1")
    noted._runs.cache_clear()
    return tmp_path


def test_a_thumbnail_keeps_the_pictures_shape(data: Path) -> None:
    Image.new("RGBA", (300, 900)).save(data / "tall.png")
    assert media.thumbnail("tall.png", 90) == {"path": "tall.90.jpg", "width": 30, "height": 90}


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../b"])
def test_no_path_leads_out_of_the_data_folder(path: str) -> None:
    with pytest.raises(ValueError, match="leads out of DATA_DIR"):
        media.thumbnail(path)


@pytest.mark.parametrize(("frames", "points", "peaks"), [(0, 4, 0), (1, 4, 1), (3, 4, 3), (1001, 4, 4), (8, 4, 4)])
def test_a_waveform_has_at_most_the_points_asked_for(data: Path, frames: int, points: int, peaks: int) -> None:
    with wave.open(str(data / "sound.wav"), "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(1_000)
        sound.writeframes(b"\x00\x80\x00\x00" * frames)  # the left channel at its lowest value
    measured = media.waveform("sound.wav", points)
    assert measured == {"duration": frames / 1_000, "peaks": [1.0] * peaks}


def test_statistics_count_the_last_day_only(data: Path) -> None:
    now = datetime.now(UTC)
    runs = [
        {"at": (now - timedelta(hours=hours)).timestamp(), "task": task, "id": "x", "state": state, "seconds": seconds}
        for hours, task, state, seconds in (
            (1, "a", "SUCCESS", 1.0),
            (2, "a", "FAILURE", 3.0),
            (23, "b", "SUCCESS", 0.5),
            (25, "a", "SUCCESS", 9.0),
        )
    ]
    folder = data / "runs"
    folder.mkdir()
    for run in runs:
        day = datetime.fromtimestamp(run["at"], UTC)  # type: ignore[arg-type]
        with open(folder / f"{day:%Y-%m-%d}.jsonl", "a") as file:
            file.write(json.dumps(run) + "\n")
    (folder / "2020-01-01.jsonl").write_text("old\n")
    report = reports.daily_statistics()
    assert report["tasks"]["a"] == {
        "runs": 2,
        "states": {"FAILURE": 1, "SUCCESS": 1},
        "median_seconds": 2.0,
        "longest_seconds": 3.0,
    }
    assert report["tasks"]["b"]["runs"] == 1
    assert json.loads((data / "reports" / f"{now:%Y-%m-%d}.json").read_text()) == report
    assert not (folder / "2020-01-01.jsonl").exists()
