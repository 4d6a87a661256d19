"""Whether a run is in order, why not, and what to do: a pure function of plain numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmssl.evaluation.collapse import Finding, findings
from mmssl.evaluation.monitors import std_reference

VERDICTS = ("healthy", "warning", "collapsed", "diverged", "unknown")
_SEVERITY = ("diverged", "collapsed", "unknown", "warning", "healthy")

_LOWER = "Lower optim.lr, lengthen the warm-up, or clip gradients."
_COLLAPSE = (
    "Raise what keeps features apart: the weight of a variance or uniformity term, the teacher's momentum, the "
    "predictor, the batch size of a contrastive term, or masker.ratio; lower optim.lr or weight decay."
)


@dataclass(frozen=True)
class Health:
    """A verdict with its reasons.

    Args:
        verdict: healthy, warning, collapsed, diverged or unknown.
        causes: what was seen, one sentence each; empty when healthy.
        remedies: what to try, in the same order as `causes`.
    """

    verdict: str
    causes: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)


def verdict(
    history: Sequence[Mapping[str, float]],
    latest: Mapping[str, float],
    d: int,
    *,
    n: int | None = None,
    moving_target: bool = False,
    min_steps: int = 20,
    signals: Mapping[str, float] | None = None,
) -> Health:
    """The state of a run. The most serious finding decides; all findings of that and the other kinds are told.

    | finding | threshold | why there |
    |---|---|---|
    | diverged | newest loss or a newest monitor is not finite | nothing trains on from there |
    | diverged | recent loss above start + 10 x max(abs(start), 1e-3) | JEPA losses rise several-fold in health |
    | collapsed | feature_std below 1 % of 1/sqrt(d) | samples agree to a cosine of 0.9999; SimSiam's collapse is 0 |
    | collapsed | RankMe below 1.5, where min(n, d) >= 4 | one direction holds nearly all of the spectrum |
    | unknown | fewer than `min_steps` steps, or fewer than 5 rows with a loss, or no monitor | no basis to judge |
    | warning | feature_std below 5 % of 1/sqrt(d) | cosine of 0.997 between samples |
    | warning | RankMe below 2 % of min(n, d), or below a quarter of its first value | dimensional collapse |
    | warning | loss not 1 % below its start | trains nothing; skipped for moving targets |
    | warning | a loss in between was not finite | such steps were lost |

    An untrained network can begin with features nearly alike. Where feature_std has at least doubled since its first
    measurement the run is leaving that state, and what would be "collapsed" is a warning. Start and recent loss are
    medians over the first and last tenth of the rows (at least 3, at most 50), so that single batches do not decide.

    Args:
        history: rows in order, each with `step`, and `loss` or monitors (`rankme`, `feature_std`) or both.
        latest: the newest monitors by name; `rankme` and `feature_std` are used, any other only for being finite.
        d: width of the features the monitors were computed on.
        n: number of samples they were computed on, which bounds the rank; d if not given.
        moving_target: targets change with the model (an EMA teacher, a codebook): the loss need not fall.
        min_steps: steps below which nothing is said.
        signals: what terms say of their answers and targets, see `mmssl.evaluation.collapse`.
    """
    losses = [float(row["loss"]) for row in history if row.get("loss") is not None]
    steps = [row["step"] for row in history]
    found = [*_loss(losses, moving_target), *_features(history, latest, d, d if n is None else min(n, d))]
    found += findings(signals or {})
    ran = max(steps, default=0)
    if ran < min_steps or len(losses) < 5:
        # early numbers say nothing, except that they are not numbers
        found = [one for one in found if one.verdict == "diverged"]
        cause = f"Only {ran:g} steps and {len(losses)} logged losses so far."
        remedy = f"Train for at least {min_steps} steps and log at least 5 of them."
        found.append(Finding("unknown", cause, remedy))
    elif "feature_std" not in latest and "rankme" not in latest:
        cause = "Features were never looked at, so that a collapse would go unseen."
        found.append(Finding("unknown", cause, "Add callback/online to the run, or run `mmssl evaluate` on it."))
    found.sort(key=lambda one: _SEVERITY.index(one.verdict))
    if not found:
        return Health("healthy")
    return Health(found[0].verdict, [one.cause for one in found], [one.remedy for one in found])


def _loss(losses: list[float], moving_target: bool) -> list[Finding]:
    """What the loss says."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if losses and not math.isfinite(losses[-1]):
        return [Finding("diverged", f"The newest loss is {losses[-1]}.", f"{_LOWER} Look for NaN in the data.")]
    found = []
    if len(finite) < len(losses):
        cause = f"{len(losses) - len(finite)} of {len(losses)} logged losses were not finite."
        found.append(Finding("warning", cause, f"{_LOWER} With 16-bit precision try bf16."))
    if len(finite) < 5:
        return found
    span = min(50, max(3, len(finite) // 10))
    start, recent = statistics.median(finite[:span]), statistics.median(finite[-span:])
    if recent > start + 10 * max(abs(start), 1e-3):
        found.append(Finding("diverged", f"The loss rose from {start:.4g} to {recent:.4g}.", _LOWER))
    elif not moving_target and recent > start - 0.01 * abs(start):
        cause = f"The loss has not fallen: {start:.4g} at the start, {recent:.4g} now."
        remedy = "Raise optim.lr if the curve is flat, lower it if it is ragged; look at `mmssl preview` for the masks."
        found.append(Finding("warning", cause, remedy))
    return found


def _features(history: Sequence[Mapping[str, float]], latest: Mapping[str, float], d: int, bound: int) -> list[Finding]:
    """What the monitors say; `bound` is the largest possible rank."""
    bad = [name for name, value in latest.items() if not math.isfinite(value)]
    if bad:
        return [
            Finding("diverged", f"The newest {', '.join(bad)} is not finite.", f"{_LOWER} Look for NaN in the data.")
        ]
    std, first = latest.get("feature_std"), _first(history, "feature_std")
    leaving = std is not None and first is not None and std > 2 * first
    found = [] if std is None else _std(std, std_reference(d), leaving)
    if "rankme" in latest:
        found += _rank(latest["rankme"], _first(history, "rankme"), bound, leaving)
    return found


def _first(history: Sequence[Mapping[str, float]], name: str) -> float | None:
    """The first finite value of a monitor in the history."""
    return next((row[name] for row in history if row.get(name) is not None and math.isfinite(row[name])), None)


def _std(value: float, reference: float, leaving: bool) -> list[Finding]:
    share = value / reference
    if share >= 0.05:
        return []
    cause = f"Features of different samples are nearly the same: feature_std is {share:.2%} of 1/sqrt(d)"
    if leaving:
        return [Finding("warning", f"{cause}, though more than at the start.", "Train on and look again.")]
    return [Finding("collapsed" if share < 0.01 else "warning", f"{cause}.", _COLLAPSE)]


def _rank(value: float, first: float | None, bound: int, leaving: bool) -> list[Finding]:
    if value < 1.5 and bound >= 4:
        cause = f"Features lie along one direction: RankMe is {value:.2f} of at most {bound}."
        return [Finding("warning" if leaving else "collapsed", cause, _COLLAPSE)]
    if value < 0.02 * bound:
        cause = f"Features use few dimensions: RankMe is {value:.1f} of at most {bound}."
        return [Finding("warning", cause, _COLLAPSE)]
    if first is not None and value < first / 4:
        cause = f"Features lose dimensions: RankMe fell from {first:.1f} to {value:.1f}."
        return [Finding("warning", cause, _COLLAPSE)]
    return []
