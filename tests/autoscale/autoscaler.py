"""What decides how many pods a Deployment has, where there is no cluster: KEDA's questions, and the autoscaler's arithmetic.

The rules of a rendered ScaledObject are read, its queries are asked of a Prometheus that runs, and the pods are counted as
Kubernetes' autoscaler counts them. Sources: kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale, "Algorithm
details" and "Configurable scaling behavior"; keda.sh/docs/2.18/scalers/prometheus.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Any

#: Seconds between two decisions, of kube-controller-manager's --horizontal-pod-autoscaler-sync-period; how far an answer may be
#: from its target before anything is done, as a share.
SYNC, TOLERANCE = 15.0, 0.1


@dataclass
class Autoscaler:
    """The decisions about one Deployment.

    `scaled`: the ScaledObject as kubectl renders it. `ask(query)`: the number that Prometheus answers; None: it has none.
    """

    scaled: dict[str, Any]
    ask: Callable[[str], float | None]
    #: What was recommended, and by how much the pods became more or fewer: by time, in seconds.
    recommended: list[tuple[float, int]] = field(default_factory=list)
    changed: list[tuple[float, int]] = field(default_factory=list)

    def wants(self, pods: int) -> int | None:
        """How many pods the triggers want; the largest number wins. None: an answer is missing, and no other wants more."""
        found = [self._trigger(one, pods) for one in self.scaled["spec"]["triggers"]]
        known = [number for number in found if number is not None]
        most = max(known, default=pods)
        return None if len(known) < len(found) and most <= pods else most

    def _trigger(self, one: dict[str, Any], pods: int) -> int | None:
        """A missing answer counts as 0 for KEDA, whose ignoreNullValues is true by default."""
        answer, target = self.ask(one["metadata"]["query"]) or 0.0, float(one["metadata"]["threshold"])
        average = one["metricType"] == "AverageValue"
        share = answer / (target * pods) if average else answer / target
        if abs(share - 1) <= TOLERANCE:
            return pods
        return ceil(answer / target) if average else ceil(pods * share)

    def decide(self, pods: int, now: float) -> int:
        """How many pods there are to be. `now`: seconds of the monotonic clock."""
        spec = self.scaled["spec"]
        least, most = spec["minReplicaCount"], spec["maxReplicaCount"]
        wanted = self.wants(pods)
        wanted = pods if wanted is None else max(least, min(most, wanted))
        rules = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        if not self.recommended:  # a controller that has just started knows what there is
            self.recommended.append((now, pods))
        self.recommended.append((now, wanted))
        down, up = (self._within(now, rules[name]["stabilizationWindowSeconds"]) for name in ("scaleDown", "scaleUp"))
        wanted = min(up) if pods < min(up) else min(pods, max(down))
        wanted = int(max(least, min(most, self._limited(pods, wanted, rules, now))))
        if wanted != pods:
            self.changed.append((now, wanted - pods))
        return wanted

    def _within(self, now: float, seconds: float) -> list[int]:
        return [number for at, number in self.recommended if at > now - seconds] or [self.recommended[-1][1]]

    def _limited(self, pods: int, wanted: int, rules: dict[str, Any], now: float) -> int:
        """What the policies allow; of several, the one that allows most."""
        if wanted == pods:
            return pods
        grows = wanted > pods
        found = []
        for one in rules["scaleUp" if grows else "scaleDown"]["policies"]:
            recent = sum(by for at, by in self.changed if at > now - one["periodSeconds"] and (by > 0) == grows)
            began = pods - recent
            by = one["value"] if one["type"] == "Pods" else began * one["value"] / 100
            found.append(ceil(began + by) if grows else int(began - by))
        return min(wanted, max(found)) if grows else max(wanted, min(found))
