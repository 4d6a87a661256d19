"""Protocols and intervals against plain references, scikit-learn and the binomial distribution."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mmssl.evaluation import bootstrap
from mmssl.evaluation.bootstrap import interval
from mmssl.evaluation.features import Features
from mmssl.evaluation.logistic import Logistic, Scaler
from mmssl.evaluation.protocols import Knn, Linear, knn
from mmssl.evaluation.splits import stratified
from mmssl.registry import entry

torch.set_num_threads(1)


def blobs(n: int, d: int, classes: int, spread: float, seed: int) -> Features:
    """Correlated Gaussian classes whose centres depend on (d, classes) only."""
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    scale = torch.arange(1, d + 1).float() ** -0.7
    return Features((centres[y] + spread * torch.randn(n, d, generator=g)) * scale + 3, y)


def plain_knn(train: Features, test: Features, k: int, temperature: float) -> list[int]:
    """DINO's eval_knn.py, sample by sample: normalised features, the k largest products, exp(s / T) votes."""
    bank = train.x / train.x.norm(dim=1, keepdim=True)
    out = []
    for row in test.x / test.x.norm(dim=1, keepdim=True):
        similar = sorted(
            ((float(row @ other), int(label)) for other, label in zip(bank, train.y, strict=True)), reverse=True
        )
        votes: dict[int, float] = {}
        for s, label in similar[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(s / temperature)
        out.append(max(votes, key=votes.__getitem__))
    return out


@pytest.mark.parametrize(("n", "k", "temperature"), [(60, 5, 0.07), (60, 20, 0.5), (7, 20, 0.07)])
def test_knn_is_the_plain_vote(n: int, k: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = blobs(n, 6, 4, 2.0, 0), blobs(80, 6, 4, 2.0, 1)
    expected = torch.tensor(plain_knn(train, test, k, temperature)) == test.y
    assert 0.2 < expected.float().mean() < 0.95  # neither trivial nor hopeless
    score = Knn(k=k, temperature=temperature)(train, test)
    assert torch.equal(score.correct, expected.float())
    assert score.value == pytest.approx(expected.double().mean().item())
    assert score.chosen["k"] == min(k, n)
    monkeypatch.setattr(knn, "_CHUNK", 3 * n)  # three queries at a time
    assert torch.equal(Knn(k=k, temperature=temperature)(train, test).correct, score.correct)


def test_knn_weights_decide_against_the_majority() -> None:
    # one close neighbour of class 5 outweighs two far ones of class 2: exp(1/.07) > 2 exp(.8/.07)
    far = [0.8, 0.6]
    train = Features(torch.tensor([[1.0, 0.0], far, far]), torch.tensor([5, 2, 2]))
    test = Features(torch.tensor([[2.0, 0.0]]), torch.tensor([5]))
    assert Knn(k=3, temperature=0.07)(train, test).value == 1
    assert Knn(k=3, temperature=10.0)(train, test).value == 0
    assert Knn(k=3, temperature=1e-4)(train, test).value == 1  # exp(1 / 1e-4) would overflow


@pytest.mark.parametrize(
    ("n", "d", "c"), [(300, 12, 0.003), (300, 12, 1.0), (300, 12, 100.0), (40, 60, 1.0)]
)  # the last has fewer rows than columns
def test_logistic_is_scikit_learns(n: int, d: int, c: float) -> None:
    train, test = blobs(n, d, 4, 1.5, 0), blobs(200, d, 4, 1.5, 1)
    scaler = StandardScaler().fit(train.x.double().numpy())
    reference = LogisticRegression(C=c, tol=1e-10, max_iter=10000)
    reference.fit(scaler.transform(train.x.double().numpy()), train.y.numpy())
    mine = Scaler.fit(train.x)
    l2 = 1 / (len(train) * c)
    weight, bias = Logistic(mine(train.x), train.y, 4).fit(l2, tolerance=1e-9)
    np.testing.assert_allclose(weight.T.numpy(), reference.coef_, rtol=1e-3, atol=1e-4)
    centred = reference.intercept_ - reference.intercept_.mean()
    np.testing.assert_allclose((bias - bias.mean()).numpy(), centred, rtol=1e-3, atol=1e-4)
    accuracy = reference.score(scaler.transform(test.x.double().numpy()), test.y.numpy())
    assert Linear(l2=(l2,))(train, test).value == pytest.approx(accuracy)


def test_a_warm_start_changes_the_way_and_not_the_end() -> None:
    train = blobs(200, 8, 3, 1.5, 0)
    problem = Logistic(Scaler.fit(train.x)(train.x), train.y, 3)
    cold = problem.fit(1e-3, tolerance=1e-9)
    warm = problem.fit(1e-3, start=problem.fit(1.0), tolerance=1e-9)
    torch.testing.assert_close(warm[0], cold[0], rtol=0, atol=1e-6)


def test_correlated_features_converge_in_tens_of_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(5, (1000,), generator=g)
    z = torch.randn(1000, 64, generator=g) + 0.5 * torch.randn(5, 64, generator=g)[y]
    mixed = (z * torch.logspace(0, -4, 64)) @ torch.randn(64, 64, generator=g)
    problem, calls = Logistic(Scaler.fit(mixed)(mixed), y, 5), []
    inner = problem._objective
    monkeypatch.setattr(problem, "_objective", lambda *a: calls.append(0) or inner(*a))
    weight, bias = problem.fit(1e-4, tolerance=1e-6)
    assert len(calls) < 100
    x = (problem.x @ problem.axes.T).requires_grad_(False)  # the gradient in plain coordinates, by autograd
    w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    (torch.nn.functional.cross_entropy(x @ w + b, y) + 1e-4 / 2 * w.square().sum()).backward()
    assert w.grad is not None and w.grad.abs().max() < 1e-5


def test_linear_chooses_on_the_training_set_alone() -> None:
    train, test = blobs(40, 30, 3, 6.0, 0), blobs(300, 30, 3, 6.0, 1)
    probe = Linear(l2=(1e-6, 1e-1, 10.0))
    first = probe(train, test)
    other = probe(train, Features(test.x, (test.y + 1) % 3))  # other test labels change nothing that is chosen
    assert first.chosen == other.chosen
    again = probe(train, test)
    assert torch.equal(first.correct, again.correct) and first.ci95 == again.ci95
    held = stratified(train.y, 0.2)
    expected = {}
    for l2 in (10.0, 1e-1, 1e-6):
        part = train.where(~held)
        expected[l2] = Linear(l2=(l2,))(part, train.where(held)).value
    best = max(expected.values())
    assert first.chosen == {"l2": max(l2 for l2 in expected if expected[l2] == best), "holdout_top1": best}
    assert len(set(expected.values())) > 1
    assert first.value == Linear(l2=(first.chosen["l2"],))(train, test).value  # refitted on all of it


def test_linear_takes_sparse_labels_constant_columns_and_inference_mode() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.tensor([3, 9]).repeat(20)
    x = torch.randn(40, 3, generator=g)
    x[:, 0] += (y - 6).float()
    x[:, 2] = 1000.1
    features = Features(x, y)
    with torch.inference_mode():
        score = Linear()(features, features)
    assert score.value > 0.9
    assert Linear()(features, Features(x, torch.full_like(y, 4))).value == 0  # a class never trained on
    single = Linear()(Features(x[:2], y[:2]), features)  # nothing can be held out
    assert single.chosen == {"l2": 1.0, "holdout_top1": None}


def test_stratified_holds_out_the_share_of_each_class() -> None:
    y = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [7])
    held = stratified(y, 0.2)
    assert [int(held[y == c].sum()) for c in (0, 1, 2, 7)] == [10, 2, 1, 0]
    assert torch.equal(held, stratified(y, 0.2)) and not torch.equal(held, stratified(y, 0.2, seed=1))
    assert not torch.equal(held[:10], torch.ones(10, dtype=torch.bool))  # drawn, not the first ones


@pytest.mark.parametrize(("n", "p"), [(100, 0.3), (400, 0.9)])
def test_interval_is_the_binomial_one(n: int, p: float) -> None:
    correct = (torch.arange(n) < round(n * p)).float()
    # the mean of n draws with replacement is Binomial(n, p) / n; a 2.5 % quantile of R draws has the standard error
    # sqrt(.025 * .975 / R) / density(1.96) deviations, and the binomial moves in steps of 1 / n
    deviation = math.sqrt(p * (1 - p) / n)
    for resamples in (1000, 20000):
        slack = 4 * math.sqrt(0.025 * 0.975 / resamples) / 0.0584 * deviation + 1 / n
        low, high = interval(correct, resamples=resamples)
        assert abs(low - binom.ppf(0.025, n, p) / n) < slack
        assert abs(high - binom.ppf(0.975, n, p) / n) < slack


def test_interval_is_deterministic_chunked_and_pools_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.random.get_rng_state()
    correct = (torch.arange(50) % 3 == 0).float()
    whole = interval(correct)
    assert torch.equal(torch.random.get_rng_state(), state)
    monkeypatch.setattr(bootstrap, "_CHUNK", 200)
    assert interval(correct) == whole
    assert interval(torch.stack([correct, correct])) == pytest.approx(whole, abs=0.021)
    assert interval(torch.stack([torch.zeros(50), torch.ones(50)])) == (0.0, 1.0)
    with pytest.raises(ValueError, match="at least one test sample"):
        interval(torch.zeros(0))


@pytest.mark.parametrize("name", ["protocol/knn", "protocol/linear"])
def test_unusable_features_are_refused(name: str) -> None:
    probe, good = entry(name).load()(), blobs(10, 3, 2, 1.0, 0)
    broken = Features(good.x.clone(), good.y)
    broken.x[4, 1] = math.nan
    with pytest.raises(ValueError, match="1 of 10 training features are not finite"):
        probe(broken, good)
    with pytest.raises(ValueError, match="test set holds no labelled"):
        probe(good, good.where(good.y < 0))
    with pytest.raises(ValueError, match="without a label"):
        probe(good, Features(good.x, good.y - 1))
    with pytest.raises(ValueError, match="width 3, test features 2"):
        probe(good, Features(good.x[:, :2], good.y))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="k of 1 or more"):
        Knn(k=0)
    with pytest.raises(ValueError, match="each above 0"):
        Linear(l2=(0.0,))
    with pytest.raises(ValueError, match="holdout between"):
        Linear(holdout=1.0)
