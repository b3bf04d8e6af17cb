"""The stand-in for Kubernetes' autoscaler decides as its documentation says."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from celery_kit.base.target import ROOT
from tests.autoscale.autoscaler import SYNC, Autoscaler

COMPONENT: Path = ROOT / "deploy/kubernetes/components/autoscaler/scaledobject.yaml"


def of(kind: str, threshold: float, answers: list[float | None], most: int = 100) -> Autoscaler:
    """One trigger, which is answered in turn, and by the last one from then on."""
    scaled: dict[str, Any] = yaml.safe_load(COMPONENT.read_text())
    trigger = {"metricType": kind, "metadata": {"query": "asked", "threshold": str(threshold)}}
    scaled["spec"] |= {"minReplicaCount": 1, "maxReplicaCount": most, "triggers": [trigger]}
    return Autoscaler(scaled, lambda _: answers.pop(0) if len(answers) > 1 else answers[0])


@pytest.mark.parametrize(
    ("kind", "threshold", "answer", "pods", "wanted"),
    [
        ("Value", 100, 200, 2, 4),  # "if the current metric value is 200m and the desired value is 100m", twice as many
        ("Value", 100, 50, 2, 1),
        ("Value", 100, 109, 2, 2),  # within the tolerance
        ("AverageValue", 10, 95, 2, 10),
        ("AverageValue", 10, None, 3, 0),
    ],
)
def test_a_trigger_wants(kind: str, threshold: float, answer: float | None, pods: int, wanted: int) -> None:
    assert of(kind, threshold, [answer]).wants(pods) == wanted


def test_it_grows_at_once_as_far_as_its_policies_allow() -> None:
    """Twice as many or 4 more in 15 s, whichever is more."""
    scaler, pods, seen = of("AverageValue", 1, [1000]), 1, []
    for turn in range(5):
        pods = scaler.decide(pods, turn * (SYNC + 1))
        seen.append(pods)
    assert seen == [5, 10, 20, 40, 80]


def test_it_shrinks_to_what_the_window_needed() -> None:
    """What was wanted in the last 300 s counts, and by half a minute at most."""
    scaler, pods, at = of("AverageValue", 1, [8, 8, 3, 1]), 8, 0.0
    counted = {}
    while at <= 500:
        pods = scaler.decide(pods, at)
        counted[at] = pods
        at += SYNC
    assert counted[300.0] == 8 and counted[330.0] == 4 and counted[390.0] <= 2 and counted[495.0] == 1
