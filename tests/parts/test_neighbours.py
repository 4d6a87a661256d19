"""DMT-JEPA's head: what it gathers around a token, and how it mixes a context, against plain loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mmssl
from mmssl.config.compose import ConfigError
from mmssl.parts.neighbours import Neighbours, around
from tests.small import VIT, batch, module, tokens

GATHER = {
    "heads": {"gather": {"_target_": "head/neighbours", "heads": 4}},
    "teacher": {"_target_": "teacher/ema", "momentum": 0.75},
    "encoder": VIT | {"class_token": False},
    "objective": {"latent": {
        "_target_": "term/predict", "project": "gather", "loss": {"_target_": "loss/smooth_l1"},
        "predictor": {"_target_": "predictor/transformer", "dim": 16, "depth": 1, "heads": 2},
        "target": {"_target_": "target/neighbours", "head": "gather"},
    }},
}  # fmt: skip


def made(width=12, heads=3, **said):
    torch.manual_seed(0)
    part = Neighbours(width, heads=heads, **said)
    for p in part.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return part


def read(block, query, x):
    """One query and the tokens (m, d) that it reads, beside itself; head by head."""
    both = block.norm1(torch.cat([query[None], x]))
    q, k, v = block.q(both[:1]), block.k(both), block.v(both)
    out = []
    for h in range(block.heads):
        cut = slice(h * len(query) // block.heads, (h + 1) * len(query) // block.heads)
        out.append((q[:, cut] @ k[:, cut].T / (len(query) / block.heads) ** 0.5).softmax(-1) @ v[:, cut])
    return block.proj(torch.cat(out, -1))[0]


def mlp(block, x):
    return x + block.fc2(F.gelu(block.fc1(block.norm2(x))))


def test_the_window_goes_on_at_the_other_side():
    index = around((14, 14))
    assert index.shape == (196, 8) and 13 * 14 + 13 in index[0].tolist() and 0 not in index[0].tolist()
    for place in (0, 27, 100):
        row, column = divmod(place, 14)
        wanted = {(row + i) % 14 * 14 + (column + j) % 14 for i in (-1, 0, 1) for j in (-1, 0, 1)} - {place}
        assert set(index[place].tolist()) == wanted
    assert around((5,)).tolist()[0] == [4, 1] and around((3, 3, 3)).shape == (27, 26)
    with pytest.raises(ValueError, match="at least three tokens"):
        around((2, 4))


def test_the_most_alike_neighbours_are_read_by_the_mean_token():
    part = made(nearest=4)
    x = torch.randn(2, 16, 12)
    found = part(tokens(2, 16, grid=(4, 4)).but(x=x), local=True).x
    for b in range(2):
        for i in range(16):
            near = around((4, 4))[i]
            best = F.cosine_similarity(x[b, near], x[b, i][None], dim=-1).topk(4).indices
            value = x[b].mean(0)
            for block in part.blocks:
                value = mlp(block, value + read(block, value, x[b, near[best]]))
            torch.testing.assert_close(found[b, i], part.norm(value), rtol=1e-4, atol=1e-4)


def test_a_context_gets_what_its_mean_has_read():
    part = made()
    x = torch.randn(2, 5, 12)
    found = part(tokens(2, 5).but(x=x)).x
    for b in range(2):
        rows = x[b]
        for block in part.blocks:
            rows = mlp(block, rows + read(block, rows.mean(0), rows))
        torch.testing.assert_close(found[b], part.norm(rows), rtol=1e-4, atol=1e-4)
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    padded = part(tokens(2, 5, valid=valid).but(x=x)).x
    torch.testing.assert_close(padded[0], found[0])
    torch.testing.assert_close(padded[1, :3], part(tokens(1, 3).but(x=x[1:, :3])).x[0], rtol=1e-4, atol=1e-5)


def test_equal_neighbourhoods_have_equal_targets():
    part = made()
    x = torch.randn(1, 1, 12).expand(2, 16, 12)
    found = part(tokens(2, 16, grid=(4, 4)).but(x=x), local=True).x
    torch.testing.assert_close(found, found[:1, :1].expand_as(found))


def test_targets_are_the_twins_and_only_the_student_learns():
    part, given = module(**GATHER), batch()
    step = part.begin(given)
    term, look = part.objective["latent"], step["x"]
    ((query, _),) = term.predict(step)
    twin = part.teacher.of(part.heads["gather"])
    h = F.layer_norm(look.taught.x, (32,))
    whole = twin(look.taught.but(x=h), local=True).x
    wanted = torch.stack([whole[i, query.index[i]] for i in range(4)])
    torch.testing.assert_close(term.target(look, query), wanted)
    part.training_step(given).backward()
    assert all(p.grad is not None for p in part.heads["gather"].parameters())
    assert all(p.grad is None for p in twin.parameters())
    old = [p.clone() for p in twin.parameters()]
    with torch.no_grad():
        for p in part.heads["gather"].parameters():
            p.add_(1.0)
    part.teacher.follow(0.0)
    for before, p, student in zip(old, twin.parameters(), part.heads["gather"].parameters(), strict=True):
        torch.testing.assert_close(p, 0.75 * before + 0.25 * student)


def test_without_its_head_it_is_ijepa():
    """With the identity in its place, and I-JEPA's standardised targets, the loss is I-JEPA's."""

    class Identity(torch.nn.Module):
        mixes = True

        def forward(self, tokens, local=False):
            return tokens

    part = module(**GATHER)
    plain = dict(GATHER["objective"]["latent"]) | {
        "project": None, "target": {"_target_": "target/teacher"}, "normalize": {"_target_": "norm/layer"},
    }  # fmt: skip
    other = module(**{k: v for k, v in GATHER.items() if k != "heads"} | {"objective": {"latent": plain}})
    other.networks.load_state_dict(part.networks.state_dict())
    other.teacher.of(other.networks["main"]).load_state_dict(part.networks["main"].state_dict())
    other.objective["latent"].predictor.load_state_dict(part.objective["latent"].predictor.state_dict())
    step = part.begin(batch())
    step.heads = {"gather": (same := Identity())}
    part.teacher._students["head_gather"], part.teacher.twins["head_gather"] = same, same
    torch.testing.assert_close(part.objective["latent"](step)[0], other.objective["latent"](other.begin(batch()))[0])


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match=r"heads=5 has to divide the features' width of 32"):
        module(**GATHER | {"heads": {"gather": {"_target_": "head/neighbours", "heads": 5}}})
    with pytest.raises(ValueError, match="on a whole grid of tokens only"):
        made()(tokens(2, 5).but(x=torch.randn(2, 5, 12)), local=True)
    with pytest.raises(ValueError, match="nearest=9, but a token has 8 neighbours"):
        made(nearest=9)(tokens(2, 16, grid=(4, 4)).but(x=torch.randn(2, 16, 12)), local=True)


def test_the_recipe_is_ijepa_with_another_target():
    tree = mmssl.build("image/dmt_jepa", ["data=sample", "data.batch_size=2", "encoder.depth=1", "encoder.dim=32"])[0]
    term = tree.objective["latent"]
    assert term.project == "gather" and term.normalize is None and tree.heads["gather"].nearest == 4
