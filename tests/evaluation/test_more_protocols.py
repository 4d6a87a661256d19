"""Few-shot, label fractions, clustering, retrieval, SVM and regression against scikit-learn and plain loops."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from mmssl.draws import Draws
from mmssl.evaluation.features import Features
from mmssl.evaluation.protocols import Linear, clustering, regression, retrieval
from mmssl.evaluation.protocols.clustering import Clustering
from mmssl.evaluation.protocols.few_shot import FewShot
from mmssl.evaluation.protocols.fraction import LabelFraction, subset
from mmssl.evaluation.protocols.regression import Regression
from mmssl.evaluation.protocols.retrieval import Retrieval
from mmssl.evaluation.protocols.svm import Svm
from mmssl.registry import names

torch.set_num_threads(1)


def blobs(n, classes=4, spread=1.5, seed=0, d=6):
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    return Features(centres[y] + spread * torch.randn(n, d, generator=g) + 2, y)


TRAIN, TEST = blobs(160), blobs(90, seed=1)


def test_every_protocol_says_what_it_needs():
    from mmssl.evaluation.material import NEEDS
    from mmssl.registry import entry

    found = {name: getattr(entry(name).load(), "needs", "pooled") for name in names("protocol")}
    assert set(found.values()) <= set(NEEDS)
    assert len(found) >= 9


def test_retrieval_is_average_precision_query_by_query(monkeypatch):
    score = Retrieval(k=3)(TRAIN, TEST)
    gallery = TRAIN.x / TRAIN.x.norm(dim=1, keepdim=True)
    expected, recall = [], []
    for row, label in zip(TEST.x, TEST.y, strict=True):
        similar = gallery @ (row / row.norm())
        expected.append(metrics.average_precision_score(TRAIN.y == label, similar))
        recall.append(bool((TRAIN.y[similar.argsort(descending=True)[:3]] == label).any()))
    assert 0.3 < np.mean(expected) < 0.9
    assert score.value == pytest.approx(np.mean(expected), abs=1e-6)
    assert score.also["recall_at_3"].value == pytest.approx(np.mean(recall))
    monkeypatch.setattr(retrieval, "_CHUNK", 5 * len(TRAIN))
    assert Retrieval(k=3)(TRAIN, TEST).value == pytest.approx(score.value)
    strange = Features(TEST.x[:1], torch.tensor([77]))  # nothing relevant in the gallery
    assert Retrieval()(TRAIN, strange).value == 0


def test_clustering_is_scikit_learns():
    score = Clustering(seed=3)(TRAIN, TEST)
    scaler = StandardScaler().fit(TRAIN.x.double().numpy())
    known, asked = (scaler.transform(part.x.double().numpy()).astype(np.float32) for part in (TRAIN, TEST))
    cluster = KMeans(4, n_init=10, random_state=3).fit(known).predict(asked)
    y = TEST.y.numpy()
    assert score.metric == "nmi" and 0.1 < score.value < 0.95
    assert score.value == pytest.approx(metrics.normalized_mutual_info_score(y, cluster))
    assert score.also["ari"].value == pytest.approx(metrics.adjusted_rand_score(y, cluster))
    best = max(  # every matching of four clusters to four classes, tried one by one
        np.mean(np.array(order)[cluster] == y) for order in permutations(range(4))
    )
    assert score.also["accuracy"].value == pytest.approx(best)
    # the same on resampled test sets, whose mean is moved to the value
    drawn = Draws.of(0, 0, torch.arange(2)).named("bootstrap").integers(0, len(y), len(y)).numpy()
    for found, measure in (
        (score, metrics.normalized_mutual_info_score),
        (score.also["ari"], metrics.adjusted_rand_score),
    ):
        expected = [measure(y[part], cluster[part]) for part in drawn]
        assert float(found.resampled[0, 0] - found.resampled[0, 1]) == pytest.approx(expected[0] - expected[1])
        assert float(found.resampled.mean()) == pytest.approx(found.value)


def test_agreement_of_hand_made_tables():
    perfect, useless = torch.tensor([[[0.0, 5], [5, 0]], [[3.0, 3], [3, 3]]]), slice(1, 2)
    assert clustering.nmi(perfect).tolist() == pytest.approx([1, 0], abs=1e-12)
    assert clustering.accuracy(perfect).tolist() == [1, 0.5]
    # 12 samples, 4 cells of 3: pairs 12, rows and columns 30 each of 66 pairs
    assert float(clustering.ari(perfect[useless])[0]) == pytest.approx((12 - 900 / 66) / (30 - 900 / 66))
    one = torch.tensor([[[4.0, 0], [0, 0]]])  # one class in one cluster
    assert clustering.nmi(one).tolist() == [1] and clustering.ari(one).tolist() == [1]


@pytest.mark.parametrize("classifier", ["centroid", "logistic"])
def test_few_shot_episodes(classifier):
    probe = FewShot(ways=3, shots=4, queries=6, episodes=40, classifier=classifier)
    score = probe(TRAIN, TEST)
    assert score.n == 40 and score.chosen["ways"] == 3
    assert score.correct is not None and torch.equal(score.correct, probe(TRAIN, TEST).correct)
    assert 0.4 < score.value < 0.98  # chance is a third
    # episodes are drawn from labels alone: other features meet the same ones
    noise = FewShot(ways=3, shots=4, queries=6, episodes=40, classifier=classifier)(
        Features(torch.randn(160, 6, generator=torch.Generator().manual_seed(5)), TRAIN.y), TEST
    )
    assert noise.value == pytest.approx(1 / 3, abs=0.12)


def test_the_nearest_centroid_by_hand():
    # two classes along x, centred at 0; unit length leaves the sign
    train = Features(torch.tensor([[1.0, 0.1], [2.0, 0.0], [-1.0, 0.0], [-2.0, -0.1]]), torch.tensor([0, 0, 1, 1]))
    test = Features(torch.tensor([[5.0, 0.3], [-4.0, 0.2], [3.0, 0.0]]), torch.tensor([0, 1, 1]))
    score = FewShot(ways=2, shots=2, queries=5, episodes=3)(train, test)
    assert score.correct is not None and score.correct.tolist() == pytest.approx([2 / 3] * 3)  # the third is wrong
    with pytest.raises(ValueError, match=r"0 classes have 3 training rows.*Lower"):
        FewShot(shots=3)(train, test)


def test_label_fraction_is_the_linear_probe_on_subsets():
    probe = LabelFraction(fractions=(0.05, 0.3, 1.0), at=0.3, seeds=(0, 1))
    score = probe(TRAIN, TEST)
    assert [point.chosen["at"] for point in score.curve] == [0.05, 0.3, 1.0]
    linear = Linear(l2=(1.0, 1e-1, 1e-2, 1e-3, 1e-4))
    assert score.curve[2].value == pytest.approx(linear(TRAIN, TEST).value)
    rows = [linear(TRAIN.where(subset(TRAIN.y, 0.3, seed)), TEST) for seed in (0, 1)]
    assert score.value == pytest.approx(np.mean([row.value for row in rows]))
    pooled = torch.cat([row.resampled for row in rows])
    assert score.ci95 == pytest.approx(np.quantile(pooled.numpy(), [0.025, 0.975]))
    assert score.curve[0].value < score.curve[2].value
    assert {tuple(point.resampled.shape) for point in score.curve} == {(2, 1000)}
    with pytest.raises(ValueError, match="at as one of them"):
        LabelFraction(at=0.5)


def test_subsets_are_stratified_and_nested():
    y = torch.tensor([0] * 200 + [1] * 40 + [2] * 3)
    small, large = subset(y, 0.1, 0), subset(y, 0.5, 0)
    assert [int(small[y == c].sum()) for c in range(3)] == [20, 4, 1]
    assert [int(large[y == c].sum()) for c in range(3)] == [100, 20, 2]
    assert bool((large | ~small).all()) and not torch.equal(small, subset(y, 0.1, 1))
    assert bool(subset(y, 1.0, 0).all())


@pytest.mark.parametrize("d", [6, 300])  # fewer and more columns than rows
def test_svm_is_scikit_learns_grid_search(d):
    train, test = blobs(160, d=d, spread=1.5 * (d / 6) ** 0.5), blobs(90, d=d, spread=1.5 * (d / 6) ** 0.5, seed=1)
    score = Svm(c=(1e-3, 1e-1, 10.0), folds=3)(train, test)
    scaler = StandardScaler().fit(train.x.double().numpy())
    known, asked = (scaler.transform(part.x.double().numpy()) for part in (train, test))
    search = GridSearchCV(
        LinearSVC(dual=d > 160, max_iter=20000, tol=1e-6, random_state=0), {"C": [1e-3, 1e-1, 10.0]},
        cv=StratifiedKFold(3, shuffle=True, random_state=0),
    ).fit(known, train.y.numpy())  # fmt: skip
    assert score.value == pytest.approx(search.score(asked, test.y.numpy()), abs=0.012)  # one near the border
    assert score.chosen["c"] == search.best_params_["C"]
    assert score.chosen["folds_top1"] == pytest.approx(search.best_score_) and score.chosen["converged"]


def test_svm_at_its_limits():
    assert Svm(kernel="rbf")(TRAIN, TEST).value > 0.5
    single = Features(TRAIN.x[:3], torch.tensor([5, 5, 5]))
    assert Svm()(single, Features(TEST.x[:2], torch.tensor([5, 1]))).value == 0.5
    assert not Svm(c=(1e4,), max_iter=1)(TRAIN, TEST).chosen["converged"]


def quantities(n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g) * torch.tensor([1.0, 10, 0.1, 3, 1]) + 4
    y = 1e5 + 300 * x[:, 0].double() - 20 * x[:, 1].double() + 100 * torch.randn(n, generator=g)
    return Features(x, y)


def test_regression_is_scikit_learns_ridge():
    train, test = quantities(200, 0), quantities(80, 1)
    score = Regression(l2=(1e-2,))(train, test)
    scaler = StandardScaler().fit(train.x.double().numpy())
    ridge = Ridge(alpha=1e-2 * 200).fit(scaler.transform(train.x.double().numpy()), train.y.numpy())
    predicted = ridge.predict(scaler.transform(test.x.double().numpy()))
    assert 0.5 < score.value < 0.99
    assert score.value == pytest.approx(metrics.r2_score(test.y.numpy(), predicted))
    rmse = score.also["rmse"]
    assert rmse.lower and rmse.value == pytest.approx(metrics.root_mean_squared_error(test.y.numpy(), predicted))
    drawn = Draws.of(0, 0, torch.arange(3)).named("bootstrap").integers(0, 80, 80).numpy()
    for i in range(3):
        again = metrics.r2_score(test.y.numpy()[drawn[i]], predicted[drawn[i]])
        assert float(score.resampled[0, i]) == pytest.approx(again)


def test_regression_chooses_on_the_training_rows_alone():
    train, test = quantities(60, 0), quantities(80, 1)
    probe = Regression(l2=(1e-4, 1e-2, 100.0))
    first, other = probe(train, test), probe(train, Features(test.x, test.y.flip(0)))
    assert first.chosen == other.chosen and first.chosen["l2"] < 100 and first.value > other.value
    blank = Features(train.x, torch.full_like(train.y, math.nan))
    assert len(blank.labelled()) == 0
    with pytest.raises(ValueError, match="without a label"):
        probe(train, blank)
    flat = Features(test.x, torch.ones_like(test.y))
    assert math.isnan(regression.quantities(flat.y, flat, {}).value)  # no variance to explain
