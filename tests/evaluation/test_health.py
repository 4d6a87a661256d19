"""Verdicts on runs whose state is known: by construction, and by features of known geometry."""

import math

import pytest
import torch

from mmssl.evaluation.health import VERDICTS, verdict
from mmssl.evaluation.monitors import monitors

D = 64
GOOD = {"rankme": 40.0, "feature_std": 0.12, "uniformity": -3.0}
STD = 1 / math.sqrt(D)


def run(*losses: float, every: int = 10) -> list[dict[str, float]]:
    return [{"step": i * every, "loss": loss} for i, loss in enumerate(losses)]


def falling(n: int = 40) -> list[dict[str, float]]:
    return run(*(1.0 + math.exp(-i / 10) for i in range(n)))


def test_a_good_run_is_healthy() -> None:
    health = verdict(falling(), GOOD, D)
    assert (health.verdict, health.causes, health.remedies) == ("healthy", [], [])


@pytest.mark.parametrize(
    ("history", "latest", "expected", "cause"),
    [
        ([*falling(), {"step": 400, "loss": math.nan}], GOOD, "diverged", "newest loss is nan"),
        (falling(3) + run(math.inf), GOOD, "diverged", "newest loss is inf"),
        (falling(), {**GOOD, "rankme": math.nan}, "diverged", "rankme is not finite"),
        (run(*[1.0] * 20, *[50.0] * 20), GOOD, "diverged", "rose from 1 to 50"),
        (falling(), {**GOOD, "feature_std": 0.005 * STD}, "collapsed", "0.50% of 1/sqrt"),
        (falling(), {**GOOD, "rankme": 1.2}, "collapsed", "one direction"),
        (falling(), {**GOOD, "feature_std": 0.03 * STD}, "warning", "nearly the same"),
        (falling(), {**GOOD, "rankme": 1.2, "feature_std": 0.001}, "collapsed", "1/sqrt"),
        ([{"step": 0, **GOOD, "rankme": 60.0}, *falling()], {**GOOD, "rankme": 14.0}, "warning", "60.0 to 14.0"),
        (run(*[5.545] * 40), GOOD, "warning", "has not fallen: 5.545"),
        (run(*[math.nan if i == 7 else 2 - i / 40 for i in range(40)]), GOOD, "warning", "1 of 40"),
        (run(2.0, 1.0), GOOD, "unknown", "Only 10 steps"),
        (falling(), {}, "unknown", "never looked at"),
        ([], {}, "unknown", "Only 0 steps"),
    ],
)
def test_each_trouble_is_named(
    history: list[dict[str, float]], latest: dict[str, float], expected: str, cause: str
) -> None:
    health = verdict(history, latest, D)
    assert health.verdict == expected and health.verdict in VERDICTS
    assert cause in " ".join(health.causes)
    assert len(health.causes) == len(health.remedies) and all(health.remedies)


def test_the_worst_finding_decides_and_all_are_told() -> None:
    health = verdict(run(*[1.0] * 40), {**GOOD, "feature_std": 0.0}, D)
    assert health.verdict == "collapsed"
    assert "nearly the same" in health.causes[0] and "not fallen" in health.causes[1]


def test_a_moving_target_excuses_a_rising_loss_but_not_an_explosion() -> None:
    rising = [0.2 + 0.8 * i / 40 for i in range(40)]
    assert verdict(run(*rising), GOOD, D).verdict == "warning"
    assert verdict(run(*rising), GOOD, D, moving_target=True).verdict == "healthy"
    assert verdict(run(*[x**8 * 100 + 0.1 for x in rising]), GOOD, D, moving_target=True).verdict == "diverged"


def test_negative_losses_are_judged_by_their_own_size() -> None:
    assert verdict(run(*(-i / 40 for i in range(40))), GOOD, D).verdict == "healthy"
    assert verdict(run(*[-0.9] * 40), GOOD, D).verdict == "warning"


def test_a_network_leaving_its_untrained_state_has_not_collapsed() -> None:
    latest = {"rankme": 1.4, "feature_std": 0.005 * STD}
    fresh = {"step": 0, "rankme": 1.1, "feature_std": 0.002 * STD}
    assert verdict([fresh, *falling()], latest, D).verdict == "warning"
    assert verdict([{**fresh, "feature_std": 0.004 * STD}, *falling()], latest, D).verdict == "collapsed"


def test_one_odd_batch_does_not_decide() -> None:
    history = falling()
    history[-1]["loss"] = 90.0
    assert verdict(history, GOOD, D).verdict == "healthy"


def test_features_of_known_geometry() -> None:
    g = torch.Generator().manual_seed(0)
    spread = torch.randn(256, D, generator=g)
    assert verdict(falling(), monitors(spread), D, n=256).verdict == "healthy"
    point = torch.ones(256, D) + 1e-4 * spread
    assert verdict(falling(), monitors(point), D, n=256).verdict == "collapsed"
    line = torch.randn(256, 1, generator=g) * torch.ones(1, D) + 1e-5 * spread
    assert verdict(falling(), monitors(line), D, n=256).verdict == "collapsed"
    few = torch.randn(20, 3, generator=g)  # a bound of 3 is not a collapse
    assert verdict(falling(), monitors(few), 3, n=20).verdict == "healthy"
