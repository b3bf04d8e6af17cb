"""Pictures and sound: CPU-bound work on files below DATA_DIR."""

import array
import sys
import wave
from typing import Any

from celery import shared_task
from PIL import Image

from celery_kit.files import inside
from celery_kit.progress import progress


@shared_task
def thumbnail(picture: str, size: int = 128) -> dict[str, Any]:
    """Write a JPEG of at most `size` x `size` pixels beside `picture`. Returns its path below DATA_DIR, width and height."""
    source = inside(picture)
    with Image.open(source) as image:
        small = image.convert("RGB")
        small.thumbnail((size, size))
    target = source.with_name(f"{source.stem}.{size}.jpg")
    small.save(target, "JPEG")
    return {"path": str(target.relative_to(inside("."))), "width": small.width, "height": small.height}


@shared_task
def thumbnails(pictures: list[str], size: int = 128) -> list[dict[str, Any]]:
    """Make a :func:`thumbnail` of each of `pictures`, and report the progress. Returns what each returns."""
    return [thumbnail(picture, size) for picture in progress(pictures)]


@shared_task
def waveform(sound: str, points: int = 100) -> dict[str, Any]:
    """Measure a 16-bit WAV file. Returns its duration in seconds, and at most `points` peaks between 0.0 and 1.0.

    Raises ValueError for another sample width.
    """
    with wave.open(str(inside(sound)), "rb") as file:
        if file.getsampwidth() != 2:
            raise ValueError(f"{sound} has {8 * file.getsampwidth()} bits per sample; only 16 can be read")
        frames, channels = file.getnframes(), file.getnchannels()
        samples = array.array("h", file.readframes(frames))
        duration = frames / file.getframerate()
    if sys.byteorder == "big":
        samples.byteswap()
    step = max(1, -(-frames // points)) * channels
    slices = (samples[start : start + step] for start in range(0, len(samples), step))
    return {"duration": duration, "peaks": [round(max(map(abs, part)) / 32_768, 4) for part in slices]}
