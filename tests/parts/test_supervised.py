"""The head, loss, term and mixing of fine-tuning against plain references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from mmssl.draws import Draws
from mmssl.parts.mixing import Mix
from mmssl.parts.optim import adamw
from mmssl.parts.supervised import CrossEntropy, LinearHead
from mmssl.types import Tokens, View
from tests.small import VIT, batch, module

HEAD = {"classes": {"_target_": "head/linear", "dim": 3, "std": 0.5}}
TERM = {"_target_": "term/classify", "head": "classes", "loss": {"_target_": "loss/cross_entropy", "smoothing": 0.1}}
PLAIN = {"masker": None, "corruptor": None, "heads": HEAD, "objective": {"classify": TERM}}


def labelled(labels, count=None):
    return batch(count or len(labels)) | {"label": torch.tensor(labels)}


def reference(logits, target, smoothing):
    """Cross entropy with smoothed targets, row by row."""
    logits = np.asarray(logits, dtype=np.float64)
    likely = logits - logits.max(1, keepdims=True)
    likely -= np.log(np.exp(likely).sum(1, keepdims=True))
    target = np.asarray(target, dtype=np.float64)
    classes = logits.shape[1]
    full = np.eye(classes)[target.astype(int)] if target.ndim == 1 else target
    return -(((1 - smoothing) * full + smoothing / classes) * likely).sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_classes_and_of_distributions(smoothing):
    g = torch.Generator().manual_seed(0)
    logits, y = torch.randn(6, 4, generator=g), torch.tensor([0, 3, 1, 2, 2, 0])
    mixed = torch.softmax(torch.randn(6, 4, generator=g), 1)
    for target in (y, mixed):
        np.testing.assert_allclose(
            CrossEntropy(smoothing=smoothing)(logits, target), reference(logits, target, smoothing), rtol=1e-5
        )
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        CrossEntropy(smoothing=1.0)


def test_the_head_begins_at_even_odds():
    head = LinearHead(16, dim=5)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.softmax(head(x), 1), torch.full((8, 5), 0.2), atol=1e-3, rtol=0)
    normed = LinearHead(16, dim=5, norm="layer", std=0.5)
    np.testing.assert_allclose(
        normed(x).detach(), ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, unbiased=False)) @ normed.proj.weight.detach().T, atol=1e-4
    )  # fmt: skip
    for wrong in ({"dim": 1}, {"dim": 3, "norm": "group"}):
        with pytest.raises(ValueError, match=r"dim is the number of classes|norm has to be one of"):
            LinearHead(16, **wrong)


def test_the_term_is_the_mean_over_labelled_samples():
    part = module(**PLAIN)
    made = labelled([2, -1, 0, 1, -1, 2])
    loss = part.training_step(made)
    logits = part.heads["classes"](part.kept(made["x"]).pool("mean")).detach()
    keep = made["label"] >= 0
    expected = reference(logits[keep], made["label"][keep], 0.1).mean()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert float(part.latest["classify/top1"]) == pytest.approx(
        float((logits[keep].argmax(1) == made["label"][keep]).float().mean())
    )
    step, term = part.begin(made), part.objective["classify"]
    assert int(term.count(step)) == 4 == int(term(step)[1])
    loss.backward()
    assert part.networks["main"].embed.proj.weight.grad.abs().sum() > 0


def test_a_batch_without_any_label_teaches_nothing():
    part = module(**PLAIN)
    loss = part.training_step(labelled([-1, -1]))
    loss.backward()
    assert float(loss.detach()) == 0 and not part.heads["classes"].proj.weight.grad.any()


def test_labels_of_tokens():
    part = module(**PLAIN | {"objective": {"classify": TERM | {"pool": "token"}}})
    label = torch.full((2, 16), -1)
    label[0, 3], label[1, 0], label[1, 15] = 2, 1, 0
    made = batch(2) | {"label": label}
    loss = part.training_step(made)
    x = part.kept(made["x"]).x.detach()
    logits = part.heads["classes"](torch.stack([x[0, 3], x[1, 0], x[1, 15]])).detach()
    assert float(loss.detach()) == pytest.approx(float(reference(logits, [2, 1, 0], 0.1).mean()), rel=1e-5)
    term, packed = part.objective["classify"], torch.tensor([0, 0, 1])

    tokens = Tokens(torch.zeros(3, 1), torch.zeros(3, 1), torch.tensor([0, 1, 1]), sample=packed, samples=2)
    step = part.begin(batch(2) | {"label": torch.tensor([[5, -1], [7, 8]])})
    step["x"].tokens = tokens
    assert term.labels(step).tolist() == [5, -1, 8]


@pytest.mark.parametrize(
    ("changes", "made", "message"),
    [
        ({}, batch(2), "needs classes, and the training split has no labels"),
        ({}, batch(2) | {"label": torch.tensor([0.5, 1.5])}, "needs classes"),
        ({}, labelled([0, 3]), "label 3 is none of the 3 classes that head 'classes' knows; set heads.classes.dim"),
        ({}, batch(2) | {"label": torch.zeros(2, 16, dtype=torch.int64)}, "labels belong to tokens here; set the pool"),
    ],
)
def test_labels_that_do_not_fit(changes, made, message):
    with pytest.raises(ValueError, match=message):
        module(**PLAIN | changes).training_step(made)


def test_tokens_that_are_hidden_have_no_label():
    with pytest.raises(ValueError, match="pool=token labels whole samples, but look 'x' hides tokens"):
        module(heads=HEAD, objective={"classify": TERM | {"pool": "token"}})


# mixing


def draws(count, epoch=0):
    return Draws.of(0, epoch, torch.arange(count))


def test_mixup_is_the_weighted_sum_of_partners():
    mix, x = Mix(mixup=0.8), torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    partner, share = mix.mixed(View(x, "image"), draws(6))
    assert partner.tolist() == [1, 0, 3, 2, 5, 4]
    assert share[0::2].tolist() == share[1::2].tolist() and len(set(share.tolist())) == 3
    mixed = mix(View(x, "image"), None, draws(6)).data
    for i in range(6):
        torch.testing.assert_close(mixed[i], share[i] * x[i] + (1 - share[i]) * x[partner[i]])
    mix.eval()
    assert mix(View(x, "image"), None, draws(6)).data is x


def test_cutmix_takes_a_box_and_counts_it():
    mix = Mix(cutmix=1.0)
    x = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 2, 12, 10).contiguous()
    partner, share = mix.mixed(View(x, "image"), draws(40))
    mixed = mix(View(x, "image"), None, draws(40)).data
    assert mixed.dtype == torch.uint8
    for i in range(40):
        other = mixed[i, 0] == partner[i]
        assert bool((other | (mixed[i, 0] == i)).all()) and bool((mixed[i, 0] == mixed[i, 1]).all())
        assert float(share[i]) == pytest.approx(1 - float(other.float().mean()), abs=1e-6)
        rows, columns = other.any(1).nonzero(), other.any(0).nonzero()
        if len(rows):  # a box, whole
            assert int(other.sum()) == (int(rows.max() - rows.min()) + 1) * (int(columns.max() - columns.min()) + 1)
    assert 0.2 < float(share.mean()) < 0.8


def test_shares_follow_their_beta():
    from scipy.stats import beta, kstest

    shares = Mix(mixup=0.4).mixed(View(torch.zeros(4000, 1, 1, 1), "image"), draws(4000))[1][::2].double().numpy()
    assert kstest(shares, beta(0.4, 0.4).cdf).pvalue > 0.01
    both = Mix(mixup=1.0, cutmix=1.0, switch=0.25, p=0.5).mixed(
        View(torch.zeros(4000, 1, 16, 16), "image"), draws(4000)
    )[1]
    # a box may fall so small that nothing is cut
    assert 0.4 < float((both == 1).float().mean()) < 0.56


def test_pairs_do_not_depend_on_ranks():
    """A rank that holds an even piece of the batch mixes as one that holds all of it."""
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    mix = Mix(mixup=0.8, cutmix=1.0)
    whole = mix(View(x, "image"), None, draws(8)).data
    piece = mix(View(x[4:], "image"), None, Draws.of(0, 0, torch.arange(4, 8))).data
    torch.testing.assert_close(whole[4:], piece, rtol=0, atol=0)
    assert not torch.equal(whole, mix(View(x, "image"), None, draws(8, epoch=1)).data)
    odd = mix(View(x[:3], "image"), None, draws(3)).data
    assert torch.equal(odd[2], x[2]) and torch.equal(odd[:2], whole[:2])


def test_labels_are_mixed_as_samples_are():
    part = module(**PLAIN | {"corruptor": {"_target_": "corruptor/mix", "mixup": 0.8}})
    made = labelled([2, 0, 1, -1, 1, 1])
    part.train()
    loss = part.training_step(made)
    look = part.begin(made)["x"]
    mixer, chosen = look.spec.corruptor, look.draws.named("corrupt")
    partner, share = mixer.mixed(made["x"], chosen)
    logits = part.heads["classes"](part.kept(mixer(made["x"], look, chosen)).pool("mean")).detach()
    pure = one_hot(made["label"].clamp(min=0), 3).float()
    keep = [0, 1, 4, 5]  # sample 2 has a partner without a label
    target = share[:, None] * pure + (1 - share)[:, None] * pure[partner]
    assert float(loss.detach()) == pytest.approx(float(reference(logits[keep], target[keep], 0.1).mean()), rel=1e-5)
    assert int(part.objective["classify"].count(part.begin(made))) == 4


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "needs mixup or cutmix above 0"),
        ({"mixup": -1.0}, "above 0"),
        ({"mixup": 1.0, "p": 2.0}, "p has to be between 0 and 1"),
    ],
)
def test_mixing_refuses_nonsense(said, message):
    with pytest.raises(ValueError, match=message):
        Mix(**said)


def test_mixing_refuses_what_is_no_picture():
    with pytest.raises(ValueError, match="mixes dense tensors, and samples of this modality are list"):
        Mix(mixup=1.0)(View([1, 2], "toy"), None, draws(2))
    with pytest.raises(ValueError, match=r"cutmix cuts pictures, and a batch here is \(2, 9\)"):
        Mix(cutmix=1.0)(View(torch.zeros(2, 9), "toy"), None, draws(2))


# layer decay


def factors(part, decay):
    optimizer = adamw(lr=1.0, layer_decay=decay).build(part, 256)
    names = {id(p): name for name, p in part.named_parameters()}
    return {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}


def test_layer_decay_of_a_convolutional_network_is_timms():
    import timm
    from timm.optim import param_groups_layer_decay

    part = module(**PLAIN | {"encoder": {"_target_": "encoder/timm", "name": "resnet10t"}})
    found = factors(part, 0.5)
    model = timm.create_model("resnet10t", num_classes=3)
    names = {id(p): name for name, p in model.named_parameters()}
    expected = {
        names[id(p)]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.5) for p in group["params"]
    }  # fmt: skip
    assert len(expected) > 20
    for name, scale in expected.items():
        own = f"networks.main.encoder.model.{name}" if not name.startswith("fc") else f"heads.classes.proj.{name[3:]}"
        assert found[own] == pytest.approx(scale), name


def test_nothing_of_an_encoder_escapes_layer_decay():
    part = module(**PLAIN | {"encoder": VIT | {"position": {"_target_": "position/learned"}, "registers": 2}})
    part.networks["main"].encoder.blocks[0].requires_grad_(False)
    found = factors(part, 0.5)
    assert not any("blocks.0." in name for name in found)
    whole = {name for name, factor in found.items() if factor == 1.0}
    assert whole == {
        "networks.main.encoder.norm.weight",
        "networks.main.encoder.norm.bias",
        "heads.classes.proj.weight",
        "heads.classes.proj.bias",
    }
