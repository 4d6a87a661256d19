"""Few-shot episodes on frozen features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmssl.draws import Draws
from mmssl.evaluation.features import Features
from mmssl.evaluation.logistic import Logistic
from mmssl.evaluation.protocols.score import Score, averaged, check
from mmssl.registry import register

CLASSIFIERS = ("centroid", "logistic")


@register("protocol/few_shot")
class FewShot:
    """N-way k-shot episodes with frozen features: nearest centroid (Snell et al. 2017; SimpleShot, Wang et al. 2019).

    SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning. Wang et al., 2019. arXiv:1911.04623,
    "CL2N": features are centred by the mean of all training rows, which takes no label, and divided by their length.
    An episode draws classes, then support rows of each from the training set and query rows from the test set. The
    score is the mean accuracy over episodes, its interval the bootstrap over episodes. Episodes depend on the labels
    and the seed alone, so that encoders meet the same ones.

    Args:
        ways: classes of an episode; all where there are fewer with enough rows.
        shots: support rows of each class.
        queries: query rows of each class, fewer where the class has fewer.
        episodes: number of episodes.
        classifier: `centroid`, the nearest class mean; or `logistic`, logistic regression on the support rows.
        l2: penalty of `logistic`.
        seed: of the episodes.
    """

    needs = "pooled"

    def __init__(
        self,
        *,
        ways: int = 5,
        shots: int = 5,
        queries: int = 15,
        episodes: int = 200,
        classifier: str = "centroid",
        l2: float = 1e-2,
        seed: int = 0,
    ) -> None:
        if ways < 2 or min(shots, queries, episodes) < 1 or l2 <= 0 or classifier not in CLASSIFIERS:
            raise ValueError(
                "protocol/few_shot needs ways of 2 or more, shots, queries and episodes of 1 or more, l2 above 0 and "
                f"classifier centroid or logistic (got {ways}, {shots}, {queries}, {episodes}, {l2}, {classifier!r})"
            )
        self.ways, self.shots, self.queries, self.episodes = ways, shots, queries, episodes
        self.classifier, self.l2, self.seed = classifier, l2, seed

    def __call__(self, train: Features, test: Features) -> Score:
        """Mean accuracy over episodes."""
        check("protocol/few_shot", train, test)
        centre = train.x.double().mean(0)
        bank, asked = (normalize(part.x.double() - centre, dim=1) for part in (train, test))
        classes = [
            (rows, others)
            for label in torch.unique(test.y)
            if len(rows := (train.y == label).nonzero()[:, 0]) >= self.shots
            and len(others := (test.y == label).nonzero()[:, 0])
        ]
        ways = min(self.ways, len(classes))
        if ways < 2:
            raise ValueError(
                f"protocol/few_shot: {len(classes)} classes have {self.shots} training rows and a test row, an episode "
                "needs two. Lower evaluation.protocols.few_shot.shots, or give the data more labels."
            )
        found = [self._episode(bank, asked, classes, ways, i) for i in range(self.episodes)]
        chosen = {"ways": ways, "shots": self.shots, "classifier": self.classifier, "episodes": self.episodes}
        return averaged("episode_top1", torch.tensor(found), chosen)

    def _episode(
        self, bank: Tensor, asked: Tensor, classes: list[tuple[Tensor, Tensor]], ways: int, number: int
    ) -> float:
        """Accuracy of one episode."""
        draws = Draws.of(self.seed, 0, torch.tensor([number]))
        picked = draws.named("classes").order(len(classes))[0, :ways].tolist()
        support, query = [], []
        for place, which in enumerate(picked):
            rows, others = classes[which]
            mine = draws.named(f"rows/{place}")
            support.append(bank[rows[mine.named("support").order(len(rows))[0, : self.shots]]])
            query.append(asked[others[mine.named("query").order(len(others))[0, : self.queries]]])
        truth = torch.cat([torch.full((len(rows),), place) for place, rows in enumerate(query)])
        return float((self._answers(support, torch.cat(query)) == truth).double().mean())

    def _answers(self, support: list[Tensor], query: Tensor) -> Tensor:
        if self.classifier == "centroid":
            return torch.cdist(query, torch.stack([rows.mean(0) for rows in support])).argmin(1)
        y = torch.arange(len(support)).repeat_interleave(self.shots)
        weight, bias = Logistic(torch.cat(support), y, len(support)).fit(self.l2, tolerance=1e-5)
        return (query @ weight + bias).argmax(1)
