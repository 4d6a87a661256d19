"""Two looks that read one another, a decoder that reads the encoder's layers, and layers that answer: HiCMAE's parts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import mmssl
from mmssl.config import build
from mmssl.config.compose import ConfigError, compose
from mmssl.modalities.audio.waves import Waves
from mmssl.nn.positions import SinCos
from mmssl.parts.encoders.vit import ViT
from mmssl.parts.exchange import Exchange, Skips
from mmssl.types import TokenSpec, View
from tests.small import VIT, batch, module, tokens

SPEC = TokenSpec(5, 2, (4, 4))
LAYERS = ("embed", "block.0", "block.1", "block.2")


def attention(part, q, kv, heads, keep=None):
    """Multi-head attention, written out; `keep` (b, m) says which keys there are."""
    d = q.shape[-1]
    w, b = part.in_proj_weight.chunk(3), part.in_proj_bias.chunk(3)
    q, k, v = (F.linear(x, w[i], b[i]).unflatten(-1, (heads, -1)).transpose(1, 2) for i, x in enumerate((q, kv, kv)))
    weights = q @ k.mT / (d / heads) ** 0.5
    weights = weights if keep is None else weights.masked_fill(~keep[:, None, None, :], -torch.inf)
    return part.out_proj((weights.softmax(-1) @ v).transpose(1, 2).flatten(2))


def norm(x, part):
    return F.layer_norm(x, x.shape[-1:], part.weight, part.bias, part.eps)


def reads(block, x, memory, heads):
    """Cross-attention, self-attention, MLP, each behind a norm of its own; the memory behind another."""
    n = block.norms
    x = x + attention(block.cross, norm(x, n["cross"]), norm(memory, block.norm_memory), heads)
    own = norm(x, n["own"])
    x = x + attention(block.own, own, own, heads)
    return x + block.mlp(norm(x, n["mlp"]))


def shaken(part):
    """Norms that are no identity, biases that are not zero."""
    for name, p in part.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(p, mean=float("norm" in name and "weight" in name), std=0.2)
    return part.eval()


def pair(prefix=True):
    torch.manual_seed(1)
    found = []
    for count, many in ((3, 16), (5, 9)):
        whole = tokens(2, many)
        part = whole.take(torch.arange(count).expand(2, count))
        found.append(part.but(x=torch.randn(2, count, 16), prefix=torch.randn(2, 1, 16) if prefix else None))
    return found


@pytest.mark.parametrize("prefix", [False, True])
def test_both_streams_read_what_the_other_was(prefix):
    torch.manual_seed(0)
    part = shaken(Exchange(16, looks=["a", "b"], depth=2, heads=4))
    first, second = pair(prefix)
    x, y = (torch.cat([t.prefix, t.x], 1) if prefix else t.x for t in (first, second))
    for block in part.blocks:
        x, y = reads(block.sides[0], x, y, 4), reads(block.sides[1], y, x, 4)  # both from the old values
    x, y = norm(x, part.norms[0]), norm(y, part.norms[1])
    mine, other = part([first, second])
    q = int(prefix)
    torch.testing.assert_close(mine.x, x[:, q:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.x, y[:, q:], rtol=1e-5, atol=1e-5)
    assert torch.equal(mine.index, first.index) and torch.equal(other.raw, second.raw)
    if prefix:
        torch.testing.assert_close(other.prefix, y[:, :1], rtol=1e-5, atol=1e-5)
    else:
        assert mine.prefix is None
    x, y = (torch.cat([t.prefix, t.x], 1) if prefix else t.x for t in (first, second))
    for block in part.blocks:  # had the second read what the first has become, it would be another
        x = reads(block.sides[0], x, y, 4)
        y = reads(block.sides[1], y, x, 4)
    assert (norm(y, part.norms[1])[:, q:] - other.x).abs().max() > 1e-3


def test_padding_is_not_read():
    torch.manual_seed(0)
    part = shaken(Exchange(16, looks=["a", "b"], depth=2, heads=4))
    first, second = pair()
    valid = torch.tensor([[True, True, True, True, True], [True, True, True, False, False]])
    mine, other = part([first, second.but(valid=valid)])
    short = second.take(second.index[1:, :3], torch.tensor([1])).but(prefix=second.prefix[1:])
    alone = first.take(first.index[1:], torch.tensor([1])).but(prefix=first.prefix[1:])
    expected, rest = part([alone, short])
    torch.testing.assert_close(mine.x[1:], expected.x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.x[1:, :3], rest.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"looks": ["a"]}, "joins two looks"),
        ({"looks": ["a", "a"]}, "joins two looks"),
        ({"looks": ["a", "b"], "heads": 3}, "heads=3 does not divide the encoders' width 16"),
    ],
)
def test_arguments_of_the_exchange_are_checked(said, message):
    with pytest.raises(ValueError, match=message):
        Exchange(16, **said)


def test_masks_have_to_be_alike():
    first, second = pair()
    with pytest.raises(ValueError, match="different numbers of masks"):
        Exchange(16, looks=["a", "b"])([first, second.take(second.index[:1], torch.tensor([0])).but(prefix=None)])


def decoder(layers=(1.0, "block.1", "block.0"), depth=1, **said):
    torch.manual_seed(0)
    part = shaken(Skips(SPEC, 8, 6, LAYERS, layers=layers, dim=16, depth=depth, heads=2, **said))
    whole = tokens(2, 16, grid=(4, 4))
    seen = whole.take(torch.tensor([[0, 3, 5, 9], [1, 2, 6, 14]]))
    taps = {name: torch.randn(2, 5, 8) for name in LAYERS}
    seen = seen.but(x=torch.randn(2, 4, 8), prefix=torch.randn(2, 1, 8), taps=taps)
    query = whole.take(torch.tensor([[1, 2, 4, 15, 7], [0, 3, 4, 5, 7]]))
    return part, seen, query


def dense(part, seen, query):
    """The decoder over the whole sequence, block by block."""
    where = SinCos(SPEC, 16)
    place = F.pad(where(seen), (0, 0, 1, 0))
    x = torch.cat(
        [torch.cat([seen.prefix, seen.x], 1) @ part.embed.weight.T + place, part.mask_token + where(query)], 1
    )
    first, *later = part.blocks
    qkv = F.linear(norm(x, first.norm1), first.attn.qkv.weight, first.attn.qkv.bias)
    q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in qkv.chunk(3, -1))
    x = x + first.attn.proj(((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
    x = x + first.mlp(norm(x, first.norm2))
    for block, name in zip(later, ("block.2", "block.1", "block.0"), strict=True):
        x = reads(block, x, seen.taps[name] @ part.embed.weight.T + place, 2)
    return part.head(norm(x, part.norm))[:, -query.index.shape[1] :]


def test_the_decoder_reads_layers_deepest_first():
    part, seen, query = decoder()
    assert part.taps == ("block.2", "block.1", "block.0") and part.embed.bias is None
    found = part(seen, query)
    assert found.shape == (2, 5, 6)
    torch.testing.assert_close(found, dense(part, seen, query), rtol=1e-4, atol=1e-5)
    for name in part.taps:  # each is read; what is not named is not
        changed = part(seen.but(taps=seen.taps | {name: seen.taps[name] + torch.randn(8)}), query)
        assert (changed - found).abs().max() > 1e-4, name
    assert torch.equal(part(seen.but(taps=seen.taps | {"embed": None}), query), found)


def test_layers_are_shares_of_the_blocks():
    blocks = ("embed", *(f"block.{i}" for i in range(10)))
    assert Skips(SPEC, 8, 6, blocks, dim=12).taps == ("block.9", "block.6", "block.3")


def test_a_decoder_without_layers_is_the_plain_one():
    part, seen, query = decoder((), 2)
    assert not part.taps and torch.isfinite(part(seen.but(taps={}), query)).all()
    none, seen, query = decoder(depth=0)
    assert none(seen, query).shape == (2, 5, 6)


def test_padding_of_seen_tokens_is_not_read_by_the_decoder():
    part, seen, query = decoder()
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    found = part(seen.but(valid=valid), query)
    row = torch.tensor([1])
    short = seen.take(seen.index.new_tensor([[0, 1]]), row)
    short = short.but(prefix=seen.prefix[1:], taps={name: tap[1:, :3] for name, tap in seen.taps.items()})
    expected = part(short, query.take(torch.arange(5)[None], row))
    torch.testing.assert_close(found[1:], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"heads": 5}, r"predictor\.heads=5 does not divide"),
        ({"layers": (), "depth": 0}, "leave no block"),
        ({"layers": ("block.7",)}, "there is no layer 'block.7'"),
        ({"layers": (1.2,)}, r"share of the blocks in \(0, 1\]"),
    ],
)
def test_arguments_of_the_decoder_are_checked(said, message):
    with pytest.raises(ValueError, match=message):
        Skips(SPEC, 8, 6, LAYERS, **({"dim": 16, "heads": 2} | said))


def test_layers_go_through_the_one_final_norm():
    torch.manual_seed(0)
    plain, normed = (ViT(SPEC, dim=16, depth=3, heads=2, tap_norm=yes) for yes in (False, True))
    normed.load_state_dict(shaken(plain).state_dict())
    given = tokens(2, 16, grid=(4, 4), x=torch.randn(2, 16, 16))
    names = ("embed", "block.0", "block.2", "ffn.1")
    raw, made = plain(given, names), normed.eval()(given, names)
    for name in ("block.0", "block.2"):
        torch.testing.assert_close(made.taps[name], norm(raw.taps[name], plain.norm))
    torch.testing.assert_close(made.taps["block.2"][:, 1:], made.x)  # the last is the output
    torch.testing.assert_close(made.layer("block.2").prefix, made.prefix)
    assert torch.equal(made.taps["embed"], raw.taps["embed"]) and torch.equal(made.taps["ffn.1"], raw.taps["ffn.1"])
    assert torch.equal(made.x, raw.x)


EMA = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.9}}
TWO = {"views": {"a": [], "b": []}, "encoder": VIT | {"tap_norm": True}}
MATCH = {
    "_target_": "term/match", "detach": False, "layer": 0.5, "loss": {"_target_": "loss/clip", "temperature": 0.07}
}  # fmt: skip


def test_the_mean_of_a_layers_visible_tokens_is_matched():
    part = module(**TWO, objective={"low": MATCH})
    step = part.begin(batch(4, names=("a", "b")))
    value, weight = part.objective["low"](step)
    a, b = (F.normalize(step[name].seen.taps["block.0"][:, 1:].mean(1), dim=1) for name in "ab")
    assert step["a"].seen.taps["block.0"].shape == (4, 5, 32)  # a class token and 4 of 16
    logits, own = a @ b.T / 0.07, torch.arange(4)
    wanted = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(value / weight, wanted)


def test_a_head_may_stand_behind_a_layer():
    said = {"heads": {"p": {"_target_": "head/linear", "dim": 6}}, "teacher": EMA}
    low = MATCH | {"head": "p", "detach": True, "loss": {"_target_": "loss/mse"}}
    high = low | {"layer": None}
    part = module(**TWO, **said, objective={"low": low, "high": high})
    step = part.begin(batch(4, names=("a", "b")))
    values = {name: term(step)[0] for name, term in part.objective.items()}
    head, taught = part.heads["p"], part.teacher.of(part.heads["p"])
    for name, tokens_of in (("low", lambda t: t.layer("block.0")), ("high", lambda t: t)):
        answers = {v: head(tokens_of(step[v].seen).pool("mean")) for v in "ab"}
        goals = {v: taught(tokens_of(step[v].taught).pool("mean")) for v in "ab"}
        wanted = sum(F.mse_loss(answers[v], goals[w], reduction="none").mean(1).sum() for v, w in ("ab", "ba"))
        torch.testing.assert_close(values[name], wanted)


def test_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match=r"there is no layer 'block\.9'"):
        module(**TWO, objective={"low": MATCH | {"layer": "block.9"}})


# --- the recipe ---

SMALL = [
    "data=videos", "data.root=NOWHERE", "encoder.dim=32", "encoder.heads=4", "streams.sound.encoder.dim=32",
    "streams.sound.encoder.heads=4", "heads.fusion.heads=4", "objective.pixels.predictor.dim=24",
    "objective.pixels.predictor.heads=2", "objective.patches.predictor.dim=24", "objective.patches.predictor.heads=2",
]  # fmt: skip
FACTS = {"channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3, "samples": 8}


def hicmae(*said):
    torch.manual_seed(0)
    return build.module(compose("multimodal/hicmae", [*SMALL, *said]), FACTS)


def films(count=3, still=False, seed=0):
    """Clips of 16 frames at 160 pixels, and their sound of 2.6 seconds."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (count, 1 if still else 16, 3, 160, 160), dtype=torch.uint8, generator=generator)
    waves = torch.randn(count, 1, 41600, generator=generator) * 0.1
    return {
        "video": View(frames.expand(-1, 16, -1, -1, -1), "video"), "sound": View(Waves(waves, (41600,) * count, 16000), "audio"),
        "id": torch.arange(count), "epoch": torch.zeros(count, dtype=torch.int64),
    }  # fmt: skip


def test_hicmae_at_the_papers_sizes():
    """80 of 800 tubelets and 26 of 128 patches are seen, the former at the same places of all 8 slices."""
    part = hicmae()
    step = part.begin(films())
    video, sound = step["video"], step["sound"]
    assert video.tokens.grid == (8, 10, 10) and sound.tokens.grid == (16, 8)
    assert video.mask.visible.sum(1).tolist() == [80] * 3 and sound.mask.visible.sum(1).tolist() == [26] * 3
    slices = video.mask.visible.unflatten(1, (8, 100))
    assert torch.equal(slices, slices[:, :1].expand_as(slices))
    with torch.no_grad():
        values = {name: term(step) for name, term in part.objective.items()}
    assert float(values["pixels"][1]) == 3 * 720 and float(values["patches"][1]) == 3 * 102
    assert set(video.seen.taps) == {"block.3", "block.6", "block.9"} == set(sound.seen.taps)
    assert len(part.heads["fusion"].blocks) == 2
    for term in ("pixels", "patches"):
        predictor = part.objective[term].predictor
        assert len(predictor.blocks) == 4 and predictor.taps == ("block.9", "block.6", "block.3")
    depth = {name: (len(net.encoder.blocks), net.dim) for name, net in part.networks.items()}
    assert depth == {"main": (10, 32), "sound": (10, 32)}
    tree = compose("multimodal/hicmae", SMALL[:2])
    assert tree["encoder"]["dim"] == tree["streams"]["sound"]["encoder"]["dim"] == 512
    assert [tree["objective"][n]["weight"] for n in ("low", "middle", "high")] == [0.0025] * 3


def test_the_whole_loss_is_the_sum_of_its_terms():
    part = hicmae("encoder.depth=4", "streams.sound.encoder.depth=4")
    loss = part.training_step(films()).detach()
    got = {name: float(value) for name, value in part.latest.items()}
    wanted = got["pixels"] + got["patches"] + 0.0025 * (got["low"] + got["middle"] + got["high"])
    assert float(loss) == pytest.approx(wanted, rel=1e-6)


def test_a_still_clip():
    """Every second frame of a target is zero: nothing predicted costs half of 511 / 512."""
    part = hicmae("encoder.depth=3", "streams.sound.encoder.depth=3")
    step, term = part.begin(films(still=True)), part.objective["pixels"]
    torch.nn.init.zeros_(term.predictor.head.weight)
    torch.nn.init.zeros_(term.predictor.head.bias)
    with torch.no_grad():
        (value, weight), (moving, _) = term(step), term(part.begin(films()))
    assert float(value / weight) == pytest.approx(0.499023, abs=2e-5)
    assert float(moving / weight) > 1.2  # of independent frames the difference has twice the variance


def test_equal_embeddings_cost_the_logarithm_of_the_batch():
    part = hicmae("encoder.depth=3", "streams.sound.encoder.depth=3")
    for network in part.networks.values():  # every token becomes the norm's bias
        torch.nn.init.zeros_(network.encoder.norm.weight)
        torch.nn.init.ones_(network.encoder.norm.bias)
    step = part.begin(films(3))
    values = [(term.weight, *term(step)) for name, term in part.objective.items() if name in ("low", "middle", "high")]
    total = sum(weight * float((value / count).detach()) for weight, value, count in values)
    assert total == pytest.approx(3 * 0.0025 * math.log(3), rel=1e-5)


def gradients(part, names):
    """Of some terms with respect to the normalised layers of both encoders; None where nothing flows."""
    step = part.begin(films(2))
    found = {}
    for look in ("video", "sound"):
        taps = step[look].seen.taps
        keys = sorted(taps)
        total = sum(value / count for value, count in (part.objective[name](step) for name in names))
        found[look] = torch.autograd.grad(total, [taps[key] for key in keys], allow_unused=True, retain_graph=True)
    return found


def test_without_skips_only_contrast_reaches_the_layers():
    said = ("encoder.depth=4", "streams.sound.encoder.depth=4")
    whole = hicmae(*said)
    cut = hicmae(*said, *(f"objective.{t}.predictor.layers=[]" for t in ("pixels", "patches")),
                 *(f"objective.{t}.predictor.depth=4" for t in ("pixels", "patches")))  # fmt: skip
    for part, flows in ((whole, True), (cut, False)):
        rebuilt = gradients(part, ["pixels", "patches"])
        assert all((g is not None and bool(g.abs().max() > 0)) == flows for gs in rebuilt.values() for g in gs)
        contrast = gradients(part, ["low", "middle", "high"])
        assert all(g is not None and bool(g.abs().max() > 0) for gs in contrast.values() for g in gs)
    both = gradients(cut, ["pixels", "patches", "low", "middle", "high"])
    for look, found in gradients(cut, ["low", "middle", "high"]).items():
        for mine, other in zip(found, both[look], strict=True):
            torch.testing.assert_close(mine, other)


def test_fusion_is_computed_once_and_joins_the_streams():
    part = hicmae("encoder.depth=3", "streams.sound.encoder.depth=3")
    calls = []
    part.heads["fusion"].register_forward_hook(lambda *_: calls.append(1))
    part.training_step(films())
    assert calls == [1]
    given = films()
    step = part.begin(given)
    before = part.objective["pixels"].predict(step)[0][1]
    other = films(seed=5)
    mixed = part.begin(given | {"sound": other["sound"]})
    after = part.objective["pixels"].predict(mixed)[0][1]
    assert (before - after).abs().max() > 1e-4  # what is seen of the sound is read
    assert torch.equal(step["video"].seen.x, mixed["video"].seen.x)  # by the fusion alone


def test_a_look_outside_the_fusion_is_refused():
    with pytest.raises(ConfigError, match=r"heads\.fusion joins looks \['video', 'sound'\]; look 'x' is none of them"):
        hicmae("views.x=[{_target_: view/clip}]", "masker={_target_: masker/random}", "objective.more={_target_: term/predict, look: x, project: fusion, "
               "target: {_target_: target/raw}, predictor: {_target_: predictor/linear}, loss: {_target_: loss/mse}}")  # fmt: skip
    with pytest.raises(ConfigError, match="whose encoders are 32 and 16 wide"):
        hicmae("streams.sound.encoder.dim=16")


def test_the_sample_runs_and_says_that_its_sound_is_made():
    module_, data = mmssl.build("multimodal/hicmae", ["data=sample", "data.batch_size=4"])
    given = data.batch([(0, i) for i in range(4)])
    assert given["sound"].modality == "audio" and given["sound"].data.rate == 16000
    assert type(data.source.sound).__name__ == "OfPictures"
    assert torch.isfinite(module_.training_step(given))
    assert "made of the pictures" in compose("multimodal/hicmae", ["data=sample"])["meta"]["differs"]
