"""A view that begins with what another one became shows the same part of each sample."""

from __future__ import annotations

import pytest
import torch

from mmssl.data.derived import Like, Of
from tests.data.toy import classes, data, jitter


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def double(sample, draws):
    return sample * 2


def batch(root, views, **more):
    return next(iter(data(root, views=views, **more).train_dataloader()))


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_view_goes_on_from_another(tmp_path, repeats):
    root = classes(tmp_path / "d")
    made = batch(
        root, {"a": [jitter], "b": [Of(name="a"), double], "c": [Of(name="b")], "d": [jitter]}, repeats=repeats
    )
    assert torch.equal(made["b"].data, made["a"].data * 2) and torch.equal(made["c"].data, made["b"].data)
    assert not torch.equal(made["d"].data, made["a"].data)  # else views draw for themselves
    if repeats > 1:
        assert not torch.equal(made["a"].data[0], made["a"].data[1])


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_view_goes_on_from_what_another_was_on_its_way(tmp_path, repeats):
    root = classes(tmp_path / "d")
    views = {"a": [jitter, double, double], "b": [Of(name="a", after=1)], "c": [Of(name="a", after=3), double]}
    made = batch(root, views, repeats=repeats)
    assert torch.equal(made["a"].data, made["b"].data * 4) and torch.equal(made["c"].data, made["a"].data * 2)
    assert torch.equal(made["a"].data, batch(root, {"a": views["a"]}, repeats=repeats)["a"].data)


def test_other_views_do_not_notice(tmp_path):
    root = classes(tmp_path / "d")
    alone = batch(root, {"a": [jitter]})
    both = batch(root, {"a": [jitter], "b": [Of(name="a"), jitter]})
    assert torch.equal(alone["a"].data, both["a"].data)
    assert not torch.equal(both["a"].data, both["b"].data)


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_view_draws_what_another_draws(tmp_path, repeats):
    root = classes(tmp_path / "d")
    views = {"a": [double, jitter], "b": [Like(name="a"), double, jitter], "c": [Like(name="a"), jitter, jitter]}
    made = batch(root, views, repeats=repeats)
    assert torch.equal(made["a"].data, made["b"].data)
    assert not torch.equal(made["a"].data, made["c"].data)
    assert torch.equal(made["a"].data, batch(root, {"a": views["a"]}, repeats=repeats)["a"].data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": {"a": [], "b": [Like(name="c")]}}, r"views\.b\[0\]: view/like names view 'c', which there is not"),
        ({"views": {"a": [], "b": [jitter, Like(name="a")]}}, r"views\.b\[1\]: view/like has to be the first"),
        ({"views": {"optical": [], "b": [Of(name="optcal")]}}, r"views\.b\[0\]: view/of names view 'optcal'.*mean 'optical'"),
        ({"views": {"b": [Of(name="a")], "a": []}}, r"views\.b\[0\].*'a', which has to stand before it"),
        ({"views": {"a": [Of(name="a")]}}, r"views\.a\[0\].*which has to stand before it"),
        ({"views": {"a": [], "b": [jitter, Of(name="a")]}}, r"views\.b\[1\]: view/of has to be the first"),
        ({"view": [Of(name="a")]}, r"view\.x\[0\].*which there is not"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        data(classes(tmp_path / "d"), **changes)
