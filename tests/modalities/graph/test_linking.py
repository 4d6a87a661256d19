"""Edges hidden for link prediction: which, how many, and that encoders do not see them."""

import numpy as np
import torch
from sklearn import metrics
from torch_geometric.data import Data

from mmssl.draws import Draws
from mmssl.evaluation.links import Pairs, joined
from mmssl.evaluation.protocols.link import Link
from mmssl.modalities.graph.linking import hide_links

torch.set_num_threads(1)


def graph(n=60, count=150, seed=0):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randint(n, (2, count), generator=g)
    edges = torch.stack([torch.cat([a, b]), torch.cat([b, a])])  # with repeats and self loops
    weight = torch.arange(edges.shape[1]).float()
    return Data(x=torch.randn(n, 4, generator=g), edge_index=edges, edge_attr=weight, num_nodes=n)


def pairs_of(edges):
    return {(min(a, b), max(a, b)) for a, b in edges.T.tolist() if a != b}


def check(whole, made, sets, shares):
    all_links, left = pairs_of(whole.edge_index), pairs_of(made.edge_index)
    seen, drawn = set(), set()
    for share, pairs in zip(shares, sets, strict=True):
        m = len(pairs) // 2
        assert m == round(share * len(all_links))
        linked, absent = ({tuple(pair) for pair in part.tolist()} for part in (pairs[:m], pairs[m:]))
        assert len(linked) == len(absent) == m
        assert linked <= all_links and not linked & left and not linked & seen
        assert not absent & all_links and not absent & drawn and all(a < b for a, b in absent)
        seen |= linked
        drawn |= absent
    assert left == all_links - seen


def test_hidden_edges_are_gone_and_pairs_without_edges_are_drawn(monkeypatch):
    from mmssl.modalities.graph import linking

    for limit in (2000, 10):  # all pairs listed, and drawn until enough
        monkeypatch.setattr(linking, "_ALL", limit)
        whole = graph()
        made, found = hide_links([whole, graph(seed=1)], (0.1, 0.2))
        check(whole, made[0], found[0], (0.1, 0.2))
        check(graph(seed=1), made[1], found[1], (0.1, 0.2))
        kept = dict(zip(whole.edge_attr.tolist(), whole.edge_index.T.tolist(), strict=True))
        assert [kept[key] for key in made[0].edge_attr.tolist()] == made[0].edge_index.T.tolist()
        again = hide_links([whole, graph(seed=1)], (0.1, 0.2))[1]
        assert all(torch.equal(a, b) for a, b in zip(found[0], again[0], strict=True))
    full = torch.cat([torch.triu_indices(5, 5, 1), torch.triu_indices(5, 5, 1).flip(0)], 1)
    made, found = hide_links([Data(edge_index=full[:, 1:], num_nodes=5)], (0.3, 0.3))  # complete: nothing to draw
    assert len(found[0][0]) == 0 and made[0].edge_index.shape[1] == 19


def test_graphs_are_joined_by_their_own_places():
    x = torch.arange(7.0).unsqueeze(1)
    sets = [torch.tensor([[0, 1], [0, 2]]), torch.tensor([[1, 2], [0, 1], [2, 3], [1, 3]])]
    found = joined(x, [3, 4], sets)
    assert found.pairs.tolist() == [[0, 1], [4, 5], [3, 4], [0, 2], [5, 6], [4, 6]]
    assert found.y.tolist() == [1, 1, 1, 0, 0, 0]


def blocks(seed, m=80):
    """Two communities: an edge joins nodes of one; features tell the community and more."""
    g = torch.Generator().manual_seed(7)
    side = torch.arange(50) % 2
    x = torch.randn(50, 5, generator=g)
    x[:, 0] += 1.2 * (2 * side - 1)
    h = torch.Generator().manual_seed(seed)
    a, b = torch.randint(50, (2, 20 * m), generator=h)
    same = side[a] == side[b]
    linked, absent = (torch.stack([a[keep], b[keep]], 1)[:m] for keep in (same, ~same))
    return Pairs(x, torch.cat([linked, absent]))


def test_scores_are_scikit_learns():
    train, test = blocks(0), blocks(1)
    for decoder, least in (("hadamard", 0.8), ("dot", 0.55)):
        score = Link(decoder=decoder)(train, test)
        if decoder == "dot":
            answers = (test.x[test.pairs[:, 0]] * test.x[test.pairs[:, 1]]).sum(1).double().numpy()
        else:
            from sklearn.linear_model import LogisticRegression
            from sklearn.preprocessing import StandardScaler

            known, asked = ((p.x[p.pairs[:, 0]] * p.x[p.pairs[:, 1]]).double().numpy() for p in (train, test))
            scaler = StandardScaler().fit(known)
            model = LogisticRegression(C=1 / (len(train) * score.chosen["l2"]) * 2, tol=1e-10, max_iter=10000)
            # of two classes scikit-learn fits one vector, whose penalty is half that of two opposite ones
            answers = model.fit(scaler.transform(known), train.y.numpy()).decision_function(scaler.transform(asked))
        y = test.y.numpy()
        assert score.metric == "auc" and score.value > least and score.n == 80
        np.testing.assert_allclose(score.value, metrics.roc_auc_score(y, answers), atol=2e-3)
        np.testing.assert_allclose(score.also["ap"].value, metrics.average_precision_score(y, answers), atol=4e-3)
    drawn = Draws.of(0, 0, torch.arange(2)).named("bootstrap").integers(0, 80, 80).numpy()
    for i in range(2):  # of the dot product, the first resampled sets
        both = np.concatenate([answers[:80][drawn[i]], answers[80:][drawn[i]]])
        np.testing.assert_allclose(float(score.resampled[0, i]), metrics.roc_auc_score(y, both), atol=1e-12)
        expected = metrics.average_precision_score(y, both)
        np.testing.assert_allclose(float(score.also["ap"].resampled[0, i]), expected, atol=1e-12)


def test_equal_answers_count_half():
    x = torch.ones(4, 2)
    same = Pairs(x, torch.tensor([[0, 1], [1, 2], [0, 2], [1, 3]]))
    score = Link(decoder="dot")(same, same)
    assert score.value == 0.5 and score.also["ap"].value == 0.5
