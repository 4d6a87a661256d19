"""Columns that are corrupted together by their mutual information, and complementary views, against plain loops."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from mmssl.draws import Draws
from mmssl.modalities.tabular.correlated import CorruptCorrelated, CorruptRest, mutual_information
from mmssl.modalities.tabular.table import Column, Row, Table
from mmssl.parts.losses import InfoNCE


def plain(a: list[Any], b: list[Any]) -> float:
    """Mutual information by its definition."""
    n, left, right, both = len(a), Counter(a), Counter(b), Counter(zip(a, b, strict=True))
    return sum(k / n * math.log(k * n / (left[x] * right[y])) for (x, y), k in both.items())


def cells(rows: int = 60) -> np.ndarray:
    """Six columns: three that go together, two others, one constant; some cells are missing."""
    random = np.random.default_rng(0)
    base = random.integers(0, 4, rows).astype(float)
    other = random.integers(0, 3, rows).astype(float)
    gaps = np.where(np.arange(rows) % 7 == 0, np.nan, base)
    return np.stack([base, other, base * 2, gaps, np.full(rows, 3.0), random.normal(size=rows)], 1)


def table(values: np.ndarray) -> Table:
    return Table(tuple(Column(f"c{i}", "numeric") for i in range(values.shape[1])), values, "made")


class Train:
    """A table as a data set."""

    labels = classes = None

    def __init__(self, whole: Table) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole.values)

    def read(self, i: int) -> Row:
        return Row(self.whole, i)


def draws(sample: int) -> Draws:
    return Draws.of(1, 0, torch.tensor([sample]))


def test_mutual_information_is_what_it_is_defined_as() -> None:
    values = cells()
    found = mutual_information(values[:, :5], 10)
    words = [[str(v) for v in column] for column in values[:, :5].T]
    for i in range(5):
        for j in range(5):
            assert found[i, j] == pytest.approx(plain(words[i], words[j]), abs=1e-12)
    entropy = -sum(k / 60 * math.log(k / 60) for k in Counter(words[0]).values())
    assert found[0, 0] == pytest.approx(entropy) and found[0, 2] == pytest.approx(entropy)  # also of its copy
    assert np.allclose(found[4], 0)
    cut = mutual_information(np.arange(40.0)[:, None], 4)
    assert cut[0, 0] == pytest.approx(math.log(4))  # four parts of ten rows


def test_a_column_goes_with_those_that_tell_of_it_and_the_other_view_has_the_rest() -> None:
    whole = table(cells())
    first, second = CorruptCorrelated(ratio=0.6), CorruptRest()
    for view in (first, second):
        view.fit(Train(whole))  # pyright: ignore[reportArgumentType]
    usable, seen = [0, 1, 2, 3, 5], set[tuple[int, ...]]()
    told = mutual_information(whole.values[:, usable], 10)
    for number in range(60):
        a = first(Row(whole, number), draws(number))
        b = second(a, draws(number).named("b"))
        at, rest = ({i for i in range(6) if made.donors[i] != number} for made in (a, b))
        seed = int(draws(number).named("columns").integers(0, 5, 1))
        near = sorted(range(5), key=lambda j: (j != seed, -told[seed, j]))[:3]
        assert at <= {usable[j] for j in near} and not at & rest and 4 not in at | rest
        given = draws(number).named("rows").integers(0, 60, 3)[0].tolist()
        if number not in given:
            assert at == {usable[j] for j in near}
            seen.add(tuple(sorted(at)))
            own = draws(number).named("b").named("rows").integers(0, 60, 2)[0].tolist()
            assert number in own or at | rest == set(usable)
    assert len(seen) > 1 and (0, 2, 3) in seen


def test_the_loss_of_two_orthonormal_rows() -> None:
    z = torch.eye(2)
    torch.testing.assert_close(InfoNCE(temperature=1.0)(z, z), torch.full((2,), 0.313262), atol=1e-6, rtol=0)


def test_refusals() -> None:
    whole = table(cells())
    with pytest.raises(ValueError, match="from 2 on"):
        CorruptCorrelated(bins=1)
    with pytest.raises(ValueError, match=r"did you mean 0\.5"):
        CorruptCorrelated(ratio=50)
    with pytest.raises(ValueError, match="view/of, name: a"):
        CorruptRest()(Row(whole, 0), draws(0))
    with pytest.raises(ValueError, match="rows of the train split"):
        CorruptCorrelated()(Row(whole, 0), draws(0))
    bare = CorruptCorrelated()
    bare.fit(Train(table(np.full((5, 2), 1.0))))  # pyright: ignore[reportArgumentType]
    assert bool((bare(Row(table(np.full((5, 2), 1.0)), 3), draws(3)).donors == 3).all())  # pyright: ignore
