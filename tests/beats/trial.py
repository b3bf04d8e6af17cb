"""A trial: faults in turn, each on a beat, and then a count of what was sent."""

import random
import time
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from typing import Any

from tests.beats.setup import Beat, Setup
from tests.beats.work import ENTRIES, INTERVALS
from tests.harness.waiting import settled, until

#: By fault, what begins it, what ends it, and for how many seconds it lasts.
KINDS = ("kill", "freeze", "cut", "clock")
#: A beat that was killed is started again sooner than one that is frozen comes back, as whoever watches over it does.
LASTS = {"kill": 4.0, "freeze": 20.0, "cut": 20.0, "clock": 15.0}
#: Seconds between two faults.
BETWEEN = 8.0
#: How far a clock is set, in seconds: a little, an hour and a day, ahead and back.
STEPS = (40, -40, 3_600, -3_600, 86_400, -86_400)
#: Seconds. A due time may be this much late; an interval may seem shorter by what a worker and the clocks add to it.
LATE, TOLERANCE = 15.0, 2.0


def _begin(kind: str, beat: Beat, chance: random.Random) -> None:
    if kind == "kill":
        beat.kill()
    elif kind == "freeze":
        beat.freeze()
    elif kind == "cut":
        beat.link("dark")
    else:
        beat.set_clock(chance.choice(STEPS))


def _end(kind: str, beat: Beat) -> None:
    if kind == "kill":
        beat.start()
    elif kind == "freeze":
        beat.thaw()
    elif kind == "cut":
        beat.link("open")
    else:
        beat.set_clock(0)


def run(setup: Setup, faults: int, seed: int) -> dict[str, Any]:
    """Cause so many faults, and count. Three of four hit the beat that leads."""
    chance, kinds = random.Random(seed), Counter[str]()
    until("a beat leads", setup.leader, 60)
    until("all beats live", lambda: all(beat.heartbeat.exists() for beat in setup.beats), 60)
    began = time.time()
    for number in range(faults):
        kind = KINDS[number % len(KINDS)]
        leader = settled(setup.leader, bool, 20)
        beat = leader if leader and chance.random() < 0.75 else chance.choice(setup.beats)
        kinds[f"{kind}, leader" if beat is leader else f"{kind}, follower"] += 1
        _begin(kind, beat, chance)
        time.sleep(LASTS[kind])  # how long the fault lasts
        _end(kind, beat)
        time.sleep(BETWEEN)  # due times without a fault, which are counted too
    time.sleep(LATE)  # what is due may be this late, and a second one of its kind would come by then
    ended = time.time()
    for beat in setup.beats:
        beat.process.process.terminate()
    for beat in setup.beats:
        with suppress(Exception):
            beat.process.process.wait(20)
    return {"faults": faults, "kinds": kinds, **counted(setup, began, ended), "seed": seed}


def counted(setup: Setup, began: float, ended: float) -> dict[str, Any]:
    """What was sent: how many due times, how often twice and never, and the latest, in seconds."""
    noted = setup.noted()
    settled(lambda: len(setup.ran()), lambda number: number >= sum(noted.values()), 30)
    ran: dict[str, list[float]] = {name: [] for name in ENTRIES}
    for name, at, _ in sorted(setup.ran(), key=lambda one: one[1]):
        ran[name].append(at)
    due = twice = never = 0
    late: list[float] = []
    for name, times in ran.items():
        # Messages against what the broker has noted of them.
        twice += max(0, len(times) - noted.get(name, 0))
        never += max(0, noted.get(name, 0) - len(times))
        if name.startswith("minute"):
            minutes = Counter(int(at // 60) for at in times)
            wanted = [m for m in range(int(began // 60) + 1, int(ended // 60) + 1) if m * 60 < ended - LATE]
            due += len(wanted)
            never += sum(not minutes[m] for m in wanted)
            twice += sum(max(0, number - 1) for number in minutes.values())
            late += [at % 60 for at in times]
            continue
        seconds = int(name.split()[1])
        assert seconds in INTERVALS
        gaps = [after - before for before, after in pairwise(times)]
        due += len(times)
        twice += sum(gap < seconds - TOLERANCE for gap in gaps)
        never += ended - times[-1] > seconds + LATE if times else 1
        late += [gap - seconds for gap in gaps]
    return {
        "due": due,
        "twice": twice,
        "never": int(never),
        "latest": round(max(late, default=0.0), 1),
        "late": sum(x > LATE for x in late),
    }
