"""A trained guide and what rewards it, against the definition, with gradients where they belong and nowhere else."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.config.compose import ConfigError
from tests.small import PIXELS, batch, gradients, module

ADAMAE = {
    "objective": {"pixels": PIXELS, "sampling": {"_target_": "term/policy", "of": "pixels"}},
    "guide": {"_target_": "guide/policy", "heads": 4},
    "masker": {"_target_": "masker/sampled", "ratio": 0.75, "log": True},
}


def made(**changes):
    part = module(**ADAMAE | changes)
    step = part.begin(batch())
    return part, step, part.objective["pixels"](step), part.objective["sampling"](step)


def test_the_policy_reads_embeddings_with_positions_of_its_own():
    part = module(**ADAMAE).eval()
    guide, step = part.guides["x"], part.begin(batch())
    with torch.no_grad():
        guide.position.normal_(generator=torch.Generator().manual_seed(0))
    x = part.networks["main"].embed(step["x"].tokens).x + guide.position
    wanted = torch.log_softmax(guide.head(guide.blocks[0](x))[..., 0], -1)
    torch.testing.assert_close(step["x"].score, wanted)
    torch.testing.assert_close(step["x"].score.exp().sum(1), torch.ones(4))
    assert guide.blocks[0].attn.qkv.bias is None and guide.blocks[0].attn.proj_drop.p == 0.1


def test_an_even_policy_costs_log_n_times_the_mean_loss():
    part = module(**ADAMAE)
    torch.nn.init.zeros_(part.guides["x"].head.weight)
    step = part.begin(batch())
    pixels, count = part.objective["pixels"](step)
    total, rows = part.objective["sampling"](step)
    mean = float((pixels / count).detach())
    assert float((total / rows).detach()) == pytest.approx(math.log(16) * mean, rel=1e-5)
    assert int(rows) == int(part.objective["sampling"].count(step)) == 4
    assert float(part.objective["sampling"].signals["breadth"]) == pytest.approx(1.0)
    assert part.objective["sampling"].weight == 1e-4


def test_rows_are_averaged_and_only_hidden_tokens_enter():
    _, step, _, (total, rows) = made()
    look = step["x"]
    ((query, losses),) = step.losses["pixels", "x"]
    wanted = 0.0
    for i in range(4):
        hidden = look.mask.hidden[i].nonzero()[:, 0]
        assert query.index[i].tolist() == hidden.tolist()
        wanted += float((-look.score[i, hidden] * losses[i]).mean().detach())
    assert float(total.detach()) == pytest.approx(wanted, rel=1e-5) and int(rows) == 4


def test_gradients_reach_the_policy_and_the_embedding_alone():
    part, _, _, (total, _) = made()
    total.backward()
    assert all(g is None for g in gradients(part.networks["main"].encoder).values())
    assert all(g is None for g in gradients(part.objective["pixels"]).values())
    assert all(g is not None for g in gradients(part.networks["main"].embed).values())
    assert all(g is not None for g in gradients(part.guides["x"]).values())


def test_what_was_hard_becomes_likelier_to_be_seen():
    part = module(**ADAMAE)
    logits = []
    part.guides["x"].head.register_forward_hook(lambda _, __, out: out.retain_grad() or logits.append(out))
    step = part.begin(batch())
    part.objective["pixels"](step)
    part.objective["sampling"](step)[0].backward()
    ((query, losses),) = step.losses["pixels", "x"]
    hardest = query.index.gather(1, losses.argmax(1, keepdim=True))
    assert (logits[0].grad[..., 0].gather(1, hardest) < 0).all()


def test_counting_masks_first_does_not_cost_the_policy_its_gradient():
    part = module(**ADAMAE)
    step = part.begin(batch())
    for term in part.objective.values():
        term.count(step)  # as where gradients accumulate
    part.objective["pixels"](step)
    part.objective["sampling"](step)[0].backward()
    assert all(g is not None for g in gradients(part.guides["x"]).values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guide": None, "masker": {"_target_": "masker/random"}}, "has no guide to train"),
        ({"objective": {"sampling": ADAMAE["objective"]["sampling"], "pixels": PIXELS}}, r"of='pixels'.*there is none"),
        ({"guide": {"_target_": "guide/policy", "heads": 5}}, r"guide\.heads=5"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        module(**ADAMAE | changes)
