"""T-JEPA's parts: which columns are shown and asked for, the encoder with registers, and the predictor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmssl.api import resolve
from mmssl.config import build
from mmssl.draws import Draws
from mmssl.modalities.tabular import encoders, predictors
from mmssl.modalities.tabular.encoders import interleaved
from mmssl.modalities.tabular.maskers import Columns
from mmssl.types import Tokens, TokenSpec, View

torch.set_num_threads(1)
SPEC = TokenSpec(1, 1, (6,))


def tokens(b: int, n: int, given: Tensor | None = None, width: int | None = None) -> Tokens:
    index = torch.arange(n).expand(b, n)
    x = None if width is None else torch.randn(b, n, width, generator=torch.Generator().manual_seed(b * n))
    return Tokens(raw=torch.rand(b, n, 1), pos=index.unsqueeze(-1).float(), index=index, given=given, x=x, grid=(n,))


def draws(b: int, step: int = 0, first: int = 0) -> Draws:
    return Draws.of(5, 0, torch.arange(first, first + b), None, step)


@pytest.mark.parametrize(("n", "shown", "asked"), [(54, (7, 20), (8, 34)), (8, (1, 3), (1, 5))])
def test_counts_of_columns(n: int, shown: tuple[int, int], asked: tuple[int, int]) -> None:
    """Jannis and California: every count of the range and no other, never more together than there are."""
    found = [Columns().counts(n, draws(1, step).batch()) for step in range(600)]
    contexts, targets = ({pair[i] for pair in found} for i in range(2))
    assert contexts == set(range(shown[0], shown[1] + 1)) and targets == set(range(asked[0], asked[1] + 1))
    assert max(sum(pair) for pair in found) <= n


def test_sets_of_columns() -> None:
    """One count for the batch, a choice for each row; targets leave the context out and are chosen apart."""
    mask = Columns()(tokens(64, 54), draws(64, 3), 0.0, None)
    assert mask.visible.shape == (64, 54) and mask.targets.shape == (64, 4, 54)
    shown, asked = Columns().counts(54, draws(64, 3).batch())
    assert set(mask.visible.sum(1).tolist()) == {shown} == {mask.visible_count}
    assert set(mask.targets.sum(2).flatten().tolist()) == {asked} == {mask.target_count}
    assert not bool((mask.targets & mask.visible.unsqueeze(1)).any())
    assert len(mask.visible.unique(dim=0)) > 60 and bool((mask.targets[:, 0] != mask.targets[:, 1]).any(1).all())
    assert 0.5 < float(mask.visible.float().mean(0).min() / mask.visible.float().mean()) or shown < 12
    shared = Columns(targets="shared")(tokens(64, 54), draws(64, 3), 0.0, None).targets
    assert torch.equal(shared, shared[:, :1].expand_as(shared)) and torch.equal(shared[:, 0], mask.targets[:, 0])


def test_what_a_row_gets_does_not_depend_on_the_batch() -> None:
    """Rows 4 to 7 alone, as another rank has them, are masked as in the whole batch."""
    whole = Columns()(tokens(8, 20), draws(8, 2), 0.0, None)
    part = Columns()(tokens(4, 20), draws(4, 2, 4), 0.0, None)
    assert torch.equal(whole.visible[4:], part.visible) and torch.equal(whole.targets[4:], part.targets)


def test_missing_columns_come_last() -> None:
    """They are never shown, and asked for only where nothing else is left."""
    given = torch.ones(6, 10, dtype=torch.bool)
    given[0, :7], given[1, 0], given[2, :9] = False, False, False
    masker = Columns(context=(0.2, 0.2), target=(0.5, 0.5), blocks=3)
    mask = masker(tokens(6, 10, given), draws(6), 0.0, None)
    assert not bool((mask.visible & ~given).any()) and mask.visible.sum(1).tolist() == [2, 2, 1, 2, 2, 2]
    assert set(mask.targets.sum(2).flatten().tolist()) == {5}
    asked = (mask.targets & given.unsqueeze(1)).sum(2)
    assert asked[0].tolist() == [1, 1, 1] and asked[1].tolist() == [5, 5, 5] and asked[2].tolist() == [0, 0, 0]


def test_refusals() -> None:
    for said, match in (({"context": [0.5, 0.2]}, r"masker\.context"), ({"target": [0.2, 2]}, r"masker\.target"),
                        ({"blocks": 0}, r"masker\.blocks"), ({"targets": "same"}, r"masker\.targets")):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            Columns(**said)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"of 10 columns at least 6 would be shown and 5 asked for"):
        Columns(context=(0.6, 0.7), target=(0.5, 0.6))(tokens(2, 10), draws(2), 0.0, None)
    for made in (lambda: encoders.Columns(SPEC, dim=8, heads=3), lambda: predictors.Columns(SPEC, 8, 8, (), dim=6)):
        with pytest.raises(ValueError, match="heads"):
            made()
    with pytest.raises(ValueError, match=r"encoder\.registers"):
        encoders.Columns(SPEC, dim=8, registers=-1)


def place(p: int, dim: int, base: float) -> list[float]:
    """Sine, cosine, sine, cosine, ... of one position."""
    return [(math.cos if k % 2 else math.sin)(p / base ** ((k - k % 2) / dim)) for k in range(dim)]


def plain(stack: Any, x: Tensor) -> Tensor:
    """Post-norm layers and what stands behind them, written out."""
    for block in stack.blocks:
        attended, _ = block.self_attn(x, x, x, need_weights=False)
        x = block.norm1(x + attended)
        x = block.norm2(x + block.linear2(block.linear1(x).relu()))
    return stack.norm2(stack.proj(stack.norm1(x)))


def test_positions_are_interleaved() -> None:
    found = interleaved(torch.tensor([0, 1, 13]), 8, 100.0)
    for row, p in zip(found, (0, 1, 13), strict=True):
        assert row.tolist() == pytest.approx(place(p, 8, 100.0), abs=1e-6)
    assert interleaved(torch.tensor([3]), 5, 100.0).shape == (1, 5)


def test_the_encoder_sees_registers_and_context() -> None:
    """n_ctx + 1 tokens, positions 0 for the register and j + 1 for column j, whatever columns are left."""
    encoder = encoders.Columns(SPEC, dim=8, depth=2, heads=2)
    whole = tokens(3, 6, width=8)
    kept = whole.take(torch.tensor([[0, 4], [2, 5], [1, 3]]))
    seen = encoder(kept, ("block.1",))
    assert kept.x is not None and seen.prefix is not None and seen.taps["block.1"].shape == (3, 3, 8)
    for row, columns in enumerate(((0, 4), (2, 5), (1, 3))):
        x = [encoder.registers[0] + torch.tensor(place(0, 8, 100.0))]
        x += [kept.x[row, i] + torch.tensor(place(j + 1, 8, 100.0)) for i, j in enumerate(columns)]
        expected = plain(encoder.stack, torch.stack(x)[None])[0]
        assert torch.allclose(seen.x[row], expected[1:], atol=1e-5)
        assert torch.allclose(seen.prefix[row], expected[:1], atol=1e-5)
    short = encoder(kept.but(valid=torch.tensor([[True, True], [True, False], [True, True]])))
    alone = encoder(whole.take(torch.tensor([[2]]), torch.tensor([1])))
    assert torch.allclose(short.x[1, :1], alone.x[0], atol=1e-5)


def test_the_predictor_asks_by_position() -> None:
    predictor = predictors.Columns(SPEC, 8, 5, (), dim=4, depth=2, heads=2).eval()
    whole = tokens(2, 6, width=8)
    seen = whole.take(torch.tensor([[0, 4], [2, 5]])).but(prefix=torch.randn(2, 1, 8))
    query = whole.take(torch.tensor([[1, 2, 5], [0, 1, 4]]))
    answers = predictor(seen, query)
    assert answers.shape == (2, 3, 5) and seen.x is not None and seen.prefix is not None
    for row in range(2):
        x = [predictor.embed(seen.prefix[row, 0]) + torch.tensor(place(0, 4, 1e4))]
        x += [
            predictor.embed(seen.x[row, i]) + torch.tensor(place(int(seen.index[row, i]) + 1, 4, 1e4)) for i in (0, 1)
        ]
        x += [predictor.mask_token + torch.tensor(place(int(j) + 1, 4, 1e4)) for j in query.index[row]]
        expected = predictor.head(predictor.norm(plain(predictor.stack, torch.stack(x)[None])[0, 3:]))
        assert torch.allclose(answers[row], expected, atol=1e-5)
    valid = torch.tensor([[True, False], [True, True]])
    padded = predictor(seen.but(valid=valid), query)
    short = predictor(seen.take(torch.tensor([[0]]), torch.tensor([0])).but(prefix=seen.prefix[:1]), query.take(
        torch.tensor([[0, 1, 2]]), torch.tensor([0])))  # fmt: skip
    assert torch.allclose(padded[0], short[0], atol=1e-5) and torch.allclose(padded[1], answers[1], atol=1e-5)


def test_a_step_by_hand() -> None:
    """The mean squared error over four sets, against the teacher's features of the whole row, which get no gradient."""
    sizes = ["encoder.dim=8", "encoder.depth=1", "encoder.heads=2", "objective.latent.predictor.dim=8",
             "objective.latent.predictor.depth=1", "objective.latent.predictor.heads=2", "data.batch_size=5",
             "encoder.dropout=0", "objective.latent.predictor.dropout=0"]  # fmt: skip
    columns = [{"name": f"c{i}", "kind": "numeric", "whole": False, "categories": None, "min": 0.0, "max": 1.0,
                "mean": 0.5, "std": 0.3, "missing": 0.0} for i in range(9)]  # fmt: skip
    built = build.module(resolve("tabular/t_jepa", ["data=sample", *sizes]), {"columns": columns, "samples": 5})
    with torch.no_grad():
        for p in built.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    batch = {"x": View(torch.rand(5, 9), "tabular"), "id": torch.arange(5), "epoch": torch.zeros(5).long()}
    loss = built.training_step(batch)
    look = built.begin(batch)["x"]
    student, teacher = built.networks["main"], built.teacher.of(built.networks["main"])
    predictor = built.objective["latent"].predictor
    teacher.eval()
    target, total = teacher(batch["x"]).x, []
    context = student.encoder(student.embed(look.tokens.take(look.mask.visible_index[0])))
    for k in range(4):
        query = look.tokens.take(look.mask.target_index[0][:, k])
        wanted = target.gather(1, query.index.unsqueeze(-1).expand(-1, -1, 8))
        total.append((predictor(context, query) - wanted).square().mean())
    assert float(loss.detach()) == pytest.approx(float(torch.stack(total).mean().detach()), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in built.teacher.parameters())
    assert isinstance(student.encoder.registers, nn.Parameter) and student.encoder.registers.grad is not None
