"""The eval block: its fields are the contract, its numbers are recomputed here from the protocols alone."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mmssl.draws import Draws
from mmssl.evaluation.features import Features, embed
from mmssl.evaluation.material import NoBaseline, NoLabels, pooled
from mmssl.evaluation.protocols import Knn, Linear
from mmssl.evaluation.score import evaluate
from mmssl.evaluation.telling import table
from mmssl.types import Tokens, View

torch.set_num_threads(1)
FIELDS = {
    "metric", "value", "ci95", "random_init", "random_init_ci95", "raw_input", "raw_input_ci95",
    "random_init_difference_ci95", "raw_input_difference_ci95", "n_train", "n_test", "chosen",
}  # fmt: skip


class Net(nn.Module):
    """Width 6 in, width 2 out: the random projection of a seed, or the two informative inputs (a trained encoder)."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, view: View) -> Tokens:
        x = (view.data @ self.weight).unsqueeze(1)
        return Tokens(raw=x, pos=x[..., :1], index=torch.zeros(len(x), 1, dtype=torch.int64), x=x)


def fresh(seed: int) -> nn.Module:
    torch.manual_seed(seed)  # a careless builder; `evaluate` has to keep it from the training's generator
    return Net(torch.randn(6, 2))


def features(n: int, seed: int) -> Features:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=g)
    x = 6 * torch.randn(n, 6, generator=g)
    x[:, :2] = torch.tensor([[0.0, 3.0], [3.0, 0.0], [-3.0, -3.0]])[y] + torch.randn(n, 2, generator=g)
    y[::10] = -1
    return Features(x, y)


TRAIN, TEST = features(120, 0), features(90, 1)
PROTOCOLS = {"knn": Knn(k=5), "linear": Linear(l2=(0.1, 1e-3))}
TRAINED = Net(torch.eye(6)[:, :2])


def batches(data: Features) -> Any:
    def make() -> Iterator[dict[str, Any]]:
        for i in range(0, len(data), 32):
            yield {"x": View(data.x[i : i + 32], "toy"), "label": data.y[i : i + 32]}

    return make


def run(**changes: Any) -> dict[str, dict[str, Any]]:
    test, raw = changes.pop("test_batches", batches(TEST)), changes.pop("baselines", lambda: (TRAIN, TEST))
    given: dict[str, Any] = {
        "encoder": TRAINED, "fresh": fresh, "material": {"pooled": pooled(batches(TRAIN), test, raw)},
        "protocols": PROTOCOLS, "progress": lambda line: None,
    }  # fmt: skip
    return {name: found.entry() for name, found in evaluate(**{**given, **changes}).items()}


def test_the_block_holds_what_the_protocols_give() -> None:
    state, lines = torch.random.get_rng_state(), []
    block = run(progress=lines.append)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sum("random initialisation, seed" in line for line in lines) == 3
    assert json.loads(json.dumps(block)) == block
    assert list(block) == ["knn", "linear"]
    train, test = TRAIN.labelled(), TEST.labelled()
    for name, protocol in PROTOCOLS.items():
        entry = block[name]
        assert set(entry) == FIELDS
        assert (entry["n_train"], entry["n_test"]) == (108, 81)
        own = protocol(Features(train.x[:, :2], train.y), Features(test.x[:, :2], test.y))
        assert (entry["value"], tuple(entry["ci95"]), entry["chosen"]) == (own.value, own.ci95, own.chosen)
        raw = protocol(train, test)
        assert (entry["raw_input"], tuple(entry["raw_input_ci95"])) == (raw.value, raw.ci95)


def test_random_init_is_the_mean_over_seeds_and_its_interval_pools_their_bootstraps() -> None:
    entry = run(seeds=(3, 4, 5))["knn"]
    state = torch.random.get_rng_state()
    correct = []
    for seed in (3, 4, 5):
        network = fresh(seed)
        train, test = (embed(network, batches(data)()).labelled() for data in (TRAIN, TEST))
        correct.append(Knn(k=5)(train, test).correct.double().numpy())
    torch.random.set_rng_state(state)
    assert entry["random_init"] == pytest.approx(np.mean(correct))
    drawn = Draws.of(0, 0, torch.arange(1000)).named("bootstrap").integers(0, 81, 81).numpy()
    pooled = np.concatenate([row[drawn].mean(1) for row in correct])
    np.testing.assert_allclose(entry["random_init_ci95"], np.quantile(pooled, [0.025, 0.975]))
    assert len({row.mean() for row in correct}) == 3  # the seeds differ


def test_a_baseline_that_cannot_be_is_null_with_its_reason() -> None:
    def refuse() -> Any:
        raise NoBaseline("this modality has no fixed-length raw input")

    block = run(fresh="timm gives no architecture for it", baselines=refuse)
    for entry in block.values():
        assert set(entry) == FIELDS | {"why"}
        assert [
            entry[f"{name}{end}"] for name in ("random_init", "raw_input") for end in ("", "_ci95", "_difference_ci95")
        ] == [None] * 6
        assert entry["why"] == {
            "random_init": "timm gives no architecture for it",
            "raw_input": "this modality has no fixed-length raw input",
        }
    text = table(block)
    assert text.count("none") == 4 and "raw_input: this modality has no" in text


def test_other_errors_of_a_baseline_are_not_swallowed() -> None:
    def broken() -> Any:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run(baselines=broken)


def test_data_without_labels_are_refused_by_name() -> None:
    blank = Features(TEST.x, torch.full_like(TEST.y, -1))
    with pytest.raises(NoLabels, match="the test split of the data has no labels, which knn, linear need"):
        run(test_batches=batches(blank))


def test_the_table_aligns_and_marks() -> None:
    def entry(value: float, random: float, raw: float) -> dict[str, Any]:
        made: dict[str, Any] = {"metric": "top1"}
        for name, v in (("value", value), ("random_init", random), ("raw_input", raw)):
            made |= {name: v, "ci95" if name == "value" else f"{name}_ci95": [v - 0.01, v + 0.01]}
        return made

    lines = table({"knn": entry(0.71, 0.55, 0.70), "cifar100/linear": entry(0.4, 0.39, 0.6)}).splitlines()
    assert lines[0].split() == ["protocol", "metric", "encoder", "random", "init", "raw", "input"]
    assert lines[2] == "knn              top1    0.710 [0.700, 0.720]  > 0.550 [0.540, 0.560]  ~ 0.700 [0.690, 0.710]"
    assert lines[3] == "cifar100/linear  top1    0.400 [0.390, 0.410]  ~ 0.390 [0.380, 0.400]  < 0.600 [0.590, 0.610]"
    assert lines[0].index("encoder") == lines[2].index("0.710")
