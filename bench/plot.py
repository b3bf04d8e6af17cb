"""Draw a benchmark: `python -m bench.plot bench.json` writes bench.svg beside it. It runs in the peers' environment."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, which colour-blind people can distinguish. The hatches are for print in grey.
LOOK = {"plain Celery": ("#999999", ""), "celery-kit plain": ("#56B4E9", "//"), "celery-kit fast": ("#D55E00", "xx")}


def main(path: Path) -> None:
    found: dict[str, Any] = json.loads(path.read_text())
    trials = [one for one in found["trials"] if one["section"] == "pools" and one["rounds"]]
    brokers = list(dict.fromkeys(one["case"]["broker"] for one in trials))
    mpl.rcParams["svg.hashsalt"] = "celery-kit"  # the same figures give the same file
    figure, axes = plt.subplots(1, len(brokers), figsize=(5 * len(brokers), 3.6), squeeze=False)
    for axis, broker in zip(axes[0], brokers, strict=True):
        pools = list(dict.fromkeys(one["case"]["pool"] for one in trials if one["case"]["broker"] == broker))
        names = [name for name in LOOK if any(one["name"] == name for one in trials)]
        for place, name in enumerate(names):
            rates = []
            for pool in pools:
                its = [t for t in trials if (t["case"]["broker"], t["case"]["pool"], t["name"]) == (broker, pool, name)]
                rates.append(statistics.median(one["rate"] for one in its[0]["rounds"]) if its else 0)
            colour, hatch = LOOK[name]
            where = [number + (place - (len(names) - 1) / 2) * 0.27 for number in range(len(pools))]
            axis.bar(where, rates, 0.25, label=name, color=colour, hatch=hatch, edgecolor="black", linewidth=0.5)
        axis.set_xticks(range(len(pools)), pools)
        axis.set_title(f"{broker}, one worker, tasks/s")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
