"""Point-CMAE's term: what two decoders make of tokens hidden from both, against plain loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.small import DECODER, PIXELS, batch, module

KEEPING = DECODER | {"keeps": True, "prefix": "none"}


def made(**changes):
    objective = {
        "one": PIXELS | {"predictor": KEEPING},
        "two": PIXELS | {"predictor": KEEPING, "look": "y"},
        "alike": {"_target_": "term/coincide", "terms": ["one", "two"]},
    }
    looks = {"x": {}, "y": {"views": ["x"]}}
    masker = {"_target_": "masker/random", "ratio": 0.6}
    return module(**{"objective": objective, "looks": looks, "masker": masker} | changes).double().eval()


def given(count=4):
    found = batch(count)
    return found | {"x": type(found["x"])(found["x"].data.double(), "image")}


def test_the_mean_over_tokens_hidden_in_both():
    part = made()
    step = part.begin(given())
    terms = part.objective
    for name in ("one", "two"):
        terms[name](step)
    kept = [terms[name].predictor.kept for name in ("one", "two")]
    queries = [step.losses[name, look][0][0].index for name, look in (("one", "x"), ("two", "y"))]
    total, number = terms["alike"](step)
    wanted, count = torch.zeros(()), 0
    for row in range(4):
        for i, place in enumerate(queries[0][row].tolist()):
            if place in queries[1][row].tolist():
                j = queries[1][row].tolist().index(place)
                wanted = wanted + 1 - F.cosine_similarity(kept[0][row, i], kept[1][row, j], dim=0) + 1e-8
                count += 1
    hidden = [step[name].mask.hidden for name in ("x", "y")]
    assert count == int(number) == int(terms["alike"].count(step)) == int((hidden[0] & hidden[1]).sum()) > 0
    torch.testing.assert_close(total.double(), wanted.double(), rtol=1e-5, atol=1e-6)
    both = (hidden[0] & hidden[1]).sum(1)
    least = int(hidden[0][0].sum()) * 2 - 16
    assert bool((both >= least).all()) and bool((both <= hidden[0][0].sum()).all())
    assert all(terms[name].predictor.kept is None for name in ("one", "two"))  # taken away


def test_the_same_features_cost_nothing_and_both_sides_move():
    part = made(looks={"x": {}, "y": {"views": ["x"], "mask": "x"}})
    part.objective["two"].load_state_dict(part.objective["one"].state_dict())
    step = part.begin(given())
    for name in ("one", "two"):
        part.objective[name](step)
    total, number = part.objective["alike"](step)
    assert float((total / number).detach()) == pytest.approx(1e-8, abs=2e-7)
    part = made().train()
    before = [p.detach().clone() for p in part.objective["one"].predictor.parameters()]
    step = part.begin(given())
    for name in ("one", "two"):
        part.objective[name](step)
    total, number = part.objective["alike"](step)
    total.backward()
    for name in ("one", "two"):
        assert float(part.objective[name].predictor.mask_token.grad.norm()) > 0
    optimizer = torch.optim.SGD([p for p in part.parameters() if p.grad is not None], lr=0.1)
    optimizer.step()
    after = [list(part.objective[name].predictor.parameters()) for name in ("one", "two")]
    assert any(not torch.equal(a, b) for a, b in zip(before, after[0], strict=True))
    assert not torch.equal(*(parameters[0] for parameters in after))


def test_looks_at_the_same_view_share_the_cut():
    part = made()
    step, cuts = part.begin(given()), []
    part.networks["main"].tokenizer.register_forward_hook(lambda *_: cuts.append(1))
    assert step["x"].tokens is step["y"].tokens and len(cuts) == 1
    assert not torch.equal(step["x"].mask.hidden, step["y"].mask.hidden)


def test_refusals():
    alike = {"_target_": "term/coincide", "terms": ["one", "tow"]}
    base = {"one": PIXELS | {"predictor": KEEPING}, "two": PIXELS | {"predictor": DECODER, "look": "y"}}
    with pytest.raises(ValueError, match="no term in front of it; did you mean 'two'"):
        made(objective=base | {"alike": alike})
    with pytest.raises(ValueError, match="two other terms"):
        made(objective=base | {"alike": alike | {"terms": ["one"]}})
    part = made(objective=base | {"alike": alike | {"terms": ["one", "two"]}})
    step = part.begin(given())
    for name in ("one", "two"):
        part.objective[name](step)
    with pytest.raises(ValueError, match=r"set objective\.two\.predictor\.keeps=true"):
        part.objective["alike"](step)
