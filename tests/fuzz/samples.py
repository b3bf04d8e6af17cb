"""What the fuzzer's last run has accepted and refused, for real workers: `make test-security FUZZED=1`."""

import json
import random
from collections.abc import Iterator
from itertools import chain, count, zip_longest
from typing import Any

import amqp

from celery_kit.base.target import ROOT
from tests.fuzz.inputs import parts
from tests.fuzz.worker import BROKERS, DEAD, RUNS, UndecidedError, quiet
from tests.security.hostile import Hostile

HOME = ROOT / ".kit/fuzz"
#: The shortest id or tag that can be made unique without changing its length.
LONG_ENOUGH = 6
_numbers = count()


def fuzzed(_: str) -> Iterator[Hostile]:
    """The samples of both brokers, by turns; each sender takes its own. As many of what was accepted as of what was refused."""
    quiet()
    several = zip_longest(*map(of_broker, BROKERS))
    return (one for one in chain.from_iterable(several) if one)


def of_broker(broker: str) -> Iterator[Hostile]:
    """The samples of a broker. Their ids and tags are made unique, because dead letters are stored by these."""
    form = BROKERS[broker]("fast")
    files = [path for name in ("accepted", "refused") for path in sorted((HOME / broker / name).glob("*"))]
    samples = sorted({path.read_bytes() for path in files})
    random.Random(1).shuffle(samples)
    for data in samples:
        headers, properties = read(broker, data)
        task_id, tag = headers.get("id"), properties.get("delivery_tag")
        changed = data
        for value in (task_id, tag):
            if isinstance(value, str) and is_long(value):
                changed = changed.replace(value.encode(), f"{next(_numbers):0{len(value)}}".encode())
        try:
            what = form.take(changed)
        except UndecidedError:
            continue  # it is a finding
        # What waits for its ETA or has expired neither runs nor becomes a letter; what has the same id is stored once.
        settles = (what == DEAD or (what == RUNS and is_long(task_id))) and (is_long(tag) or not isinstance(tag, str))
        one = Hostile(f"{what}: {changed[:300]!r}", settles=settles)
        if broker == "redis":
            one.raw = changed
        else:
            one.encoded, one.body = parts(changed)
        yield one


def is_long(value: object) -> bool:
    """Whether it is a text whose characters can be replaced by digits."""
    return isinstance(value, str) and len(value) >= LONG_ENOUGH and value.isascii() and value.isprintable()


def read(broker: str, data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Headers and properties, as far as they can be read."""
    try:
        if broker == "redis":
            item = json.loads(data)
            found = item.get("headers"), item.get("properties")
        else:
            message: Any = amqp.Message()
            message._load_properties(60, parts(data)[0], 0)
            found = message.properties.get("application_headers"), {}
    except Exception:
        return {}, {}
    headers, properties = ({**one} if isinstance(one, dict) else {} for one in found)
    return headers, properties
