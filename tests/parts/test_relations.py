"""Relations of tokens against plain softmaxes, and an encoder that drops redundant tokens against loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmssl.config.compose import ConfigError
from mmssl.parts.encoders.pruned import Pruned, redundancy
from mmssl.parts.encoders.vit import ViT
from mmssl.parts.relations import TokenRelation
from mmssl.types import TokenSpec
from tests.small import VIT, batch, module, tokens

NETWORK = {"_target_": "network/timm", "name": "test_vit", "pretrained": False}
PRUNED = VIT | {"_target_": "encoder/pruned", "drop": [0.3, 0.3]}
RELATIONS = {
    "_target_": "term/predict", "at": "kept", "predictor": {"_target_": "predictor/layer"},
    "target": {"_target_": "target/frozen", "layer": "qkv.-1", "network": NETWORK},
    "loss": {"_target_": "loss/token_relation", "heads": 2},
}  # fmt: skip
HYBRID = {"encoder": PRUNED, "masker": None, "corruptor": None, "objective": {"relations": RELATIONS}}
SPEC = TokenSpec(raw=5, pos=2, grid=(4, 4))
pytestmark = pytest.mark.filterwarnings("ignore:network/timm")


def plain(mine, goal, heads):
    """The divergence of relations, head by head."""
    total = 0.0
    for one, other in ((0, 1), (2, 2)):
        rows = []
        for x in (mine, goal):
            width = x.shape[-1] // 3 // heads
            cut = [[x[..., (part * heads + h) * width :][..., :width] for h in range(heads)] for part in (one, other)]
            rows.append([torch.softmax(q @ k.mT / width**0.5, -1) for q, k in zip(*cut, strict=True)])
        assert all(torch.allclose(row.sum(-1), torch.ones(())) for row in rows[0])
        total = total + sum((g * (g / m).log()).sum(-1) for m, g in zip(*rows, strict=True)) / heads
    return total


def test_relations_against_softmaxes_of_each_head():
    generator = torch.Generator().manual_seed(0)
    mine, goal = torch.randn(2, 5, 24, generator=generator), torch.randn(2, 5, 12, generator=generator)
    loss = TokenRelation(heads=2)
    torch.testing.assert_close(loss(mine, goal), plain(mine, goal, 2))
    torch.testing.assert_close(loss(mine, mine), torch.zeros(2, 5), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"loss\.heads=3 does not divide"):
        TokenRelation(heads=3)(mine, goal)


def test_redundancy_is_the_mean_cosine_with_the_others():
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    cosine = F.cosine_similarity(x.unsqueeze(1), x.unsqueeze(2), dim=-1)
    torch.testing.assert_close(redundancy(x), (cosine.sum(-1) - 1) / 4)


def test_redundant_tokens_are_dropped_as_in_a_loop():
    torch.manual_seed(0)
    encoder = Pruned(SPEC, dim=24, depth=3, heads=3, drop=[0.25, 0.0, 0.5])
    given = tokens(2, 16, grid=(4, 4)).but(x=torch.randn(2, 16, 24))
    assert encoder.left(16) == 6
    found = encoder(given, ("embed", "block.0", "qkv.2"))
    assert found.x.shape == (2, 6, 24) and found.prefix.shape == (2, 1, 24)
    for i in range(2):
        x, places, taps = given.x[i : i + 1] + encoder.position.table, list(range(16)), {}
        prefix = encoder.prefix
        for number, (block, goes) in enumerate(zip(encoder.blocks, (4, 0, 6), strict=True)):
            like = redundancy(x)[0].tolist()
            drop = sorted(range(len(places)), key=lambda j, like=like: like[j])[len(places) - goes :] if goes else []
            stay = [j for j in range(len(places)) if j not in drop]
            x, places = x[:, stay], [places[j] for j in stay]
            taps = {name: {k: v for k, v in tap.items() if k in places} for name, tap in taps.items()}
            if number == 0:
                taps["embed"] = dict(zip(places, x[0], strict=True))
            if number == 2:
                read = block.attn.qkv(block.norm1(torch.cat([prefix, x], 1)))
                taps["qkv.2"] = dict(zip(places, read[0, 1:], strict=True))
            whole = block(torch.cat([prefix, x], 1))
            prefix, x = whole[:, :1], whole[:, 1:]
            if number == 0:
                taps["block.0"] = dict(zip(places, x[0], strict=True))
        assert found.index[i].tolist() == places
        torch.testing.assert_close(found.x[i], encoder.norm(x)[0])
        for name, tap in taps.items():
            torch.testing.assert_close(found.taps[name][i, 1:], torch.stack([tap[place] for place in places]))


def test_what_does_not_train_keeps_all_tokens():
    encoder = Pruned(SPEC, dim=24, depth=3, heads=3).eval()
    whole = ViT(SPEC, dim=24, depth=3, heads=3).eval()
    whole.load_state_dict(encoder.state_dict())
    given = tokens(2, 16, grid=(4, 4)).but(x=torch.randn(2, 16, 24))
    assert encoder.left(16) == 16 and torch.equal(encoder(given).x, whole(given).x)


def test_the_term_relates_only_what_is_kept():
    part = module(**HYBRID)
    step, term = part.begin(batch()), part.objective["relations"]
    count = term.count(step)
    assert not step._encoded  # numbers are known before anything is encoded
    total, weight = term(step)
    look, network = step["x"], term.target._network[0]
    assert int(count) == int(weight) == 4 * look.seen.index.shape[1] == 4 * 9  # 16, 12, 9

    goal = network(look.views[0], (term.target.layer,)).taps[term.target.layer]
    place = look.seen.index.unsqueeze(-1).expand(-1, -1, goal.shape[-1])
    goal = goal[:, 1:].gather(1, place)
    torch.testing.assert_close(total, plain(look.seen.taps["qkv.1"][:, 1:], goal, 2).sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": PRUNED | {"drop": [0.3, 1.5]}}, r"encoder\.drop"),
        ({"objective": {"r": RELATIONS | {"predictor": {"_target_": "predictor/layer", "layer": "qkv.9"}}}}, "qkv.9"),
        (
            {"objective": {"r": RELATIONS | {"target": RELATIONS["target"] | {"layer": "conv.1"}}}},
            r"there is no layer 'conv\.1'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises((ConfigError, ValueError), match=words):
        module(**HYBRID | changes)


def test_padding_is_refused():
    given = tokens(2, 16, grid=(4, 4), valid=torch.ones(2, 16, dtype=torch.bool)).but(x=torch.randn(2, 16, 24))
    with pytest.raises(ValueError, match="without padding"):
        Pruned(SPEC, dim=24, depth=3, heads=3)(given)
