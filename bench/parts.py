"""The gain of each part of the fast engine: the engine without the part is measured in turn with the whole engine."""

from bench.contenders import Contender, otherwise
from celery_kit.engine.parts import DELAY, PARTS, SEND_MANY, WORKER, Part
from testbed.environments import ROOT

#: The modules of the fast path, relative to celery_kit/.
FILES = (
    "engine/*.py", "brokers/*/transport.py", "brokers/*/read_ahead.py", "brokers/*/*_connection.py", "brokers/*/fetch.*",
    "brokers/*/frames_*.py", "brokers/*/window.py", "brokers/*/bulk.py", "produce/alike.py", "produce/delay.py",
    "produce/bulk.py", "produce/publishing.py", "results/redis/store.*", "results/redis/waiting.py", "base/ids.py",
)  # fmt: skip
#: An option of Celery's that the kit sets on some pools, measured like a part.
LOCALS = Part("USE_FAST_LOCALS", "Celery's quicker stacks of tasks and requests", {}, (WORKER,), pools=("prefork", "solo"))
SIDES = {WORKER: "", DELAY: "kit delay", SEND_MANY: "kit send_many"}
ROWS = PARTS | {LOCALS.name: LOCALS}


def without(part: Part) -> dict[str, str]:
    """The environment variables that disable a part."""
    return {part.name: ""} if part is LOCALS else {"ENGINE_WITHOUT": part.name}


def contender(part: Part) -> Contender:
    """The kit's worker without this part."""
    return otherwise(part.name, without(part))


def lines() -> int:
    """The number of lines of the fast path, including comments."""
    return sum(len(path.read_text().splitlines()) for pattern in FILES for path in (ROOT / "celery_kit").glob(pattern))
