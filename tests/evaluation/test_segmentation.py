"""Segmentation: interpolation against torch's, the fit and the score against scikit-learn's, masks beside their images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from torch import nn

import mmssl
from mmssl.cli import main
from mmssl.data.module import Data
from mmssl.data.segments import SegmentTable, mover
from mmssl.draws import Draws
from mmssl.evaluation.logistic import Logistic
from mmssl.evaluation.protocols.segmentation import Segmentation, miou, statistic, tally
from mmssl.evaluation.segments import RawTokens, SegmentFeatures, among, confusion, embed_segments, on_grid
from mmssl.modalities.image.adapter import Image
from mmssl.parts.views import CenterCrop, Flip, GaussianBlur, RandomResizedCrop, Resize
from mmssl.types import Tokens, View

torch.set_num_threads(1)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("grid", "shape"),
    [((4, 4), (32, 32)), ((3, 5), (7, 11)), ((8, 8), (5, 6)), ((1, 2), (4, 4)), ((2, 3, 4), (5, 6, 8))],
)
def test_elements_on_a_grid_are_interpolated_as_torch_does(grid, shape):
    answers, axes = random(2, int(np.prod(grid)), 3), len(grid)
    near, weight = on_grid(grid, shape)
    features = SegmentFeatures(answers, torch.zeros(2, int(np.prod(shape))), near[None], weight[None])
    image = answers.transpose(1, 2).reshape(2, 3, *grid)
    mode = "bilinear" if axes == 2 else "trilinear"
    expected = nn.functional.interpolate(image, shape, mode=mode, align_corners=False)
    torch.testing.assert_close(
        features.interpolated(answers), expected.flatten(2).transpose(1, 2), atol=2e-6, rtol=1e-5
    )


def test_elements_among_tokens_lie_between_the_three_nearest():
    """PointNet++'s equation 2, point by point."""
    places, pos = random(2, 20, 3), random(2, 6, 3, seed=1)
    places[0, 0] = pos[0, 4]  # on a token: that one alone answers
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 2:] = False  # fewer than three are left
    answers = random(2, 6, 5, seed=2)
    near, weight = among(places, pos, valid)
    found = SegmentFeatures(answers, torch.zeros(2, 20), near, weight).interpolated(answers)
    for b in range(2):
        for i in range(20):
            squared = [(float((places[b, i] - pos[b, j]).square().sum()), j) for j in range(6) if valid[b, j]]
            nearest = [(1 / max(d, 1e-10), j) for d, j in sorted(squared)[:3]]
            expected = sum(w * answers[b, j] for w, j in nearest) / sum(w for w, _ in nearest)
            torch.testing.assert_close(found[b, i], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0, 0], answers[0, 4])


def test_the_fit_is_scikit_learns_on_interpolated_features():
    near, weight = on_grid((3, 3), (9, 9))
    features = SegmentFeatures(random(6, 9, 4).half(), torch.randint(-1, 3, (6, 81)), near[None], weight[None])
    mix, y = features.mixture(torch.float64)
    x = features.x.double().flatten(0, 1)
    between = features.interpolated(features.x.double())[features.y >= 0]
    torch.testing.assert_close(mix.to_dense() @ x, between, atol=1e-6, rtol=1e-5)
    own, bias = Logistic(x, y, 3, mix).fit(1e-2)
    theirs = LogisticRegression(C=1 / (1e-2 * len(y)), tol=1e-10, max_iter=5000).fit(between.numpy(), y.numpy())
    np.testing.assert_allclose(own.T.numpy(), theirs.coef_, atol=2e-4)
    centred = bias - bias.mean()  # the one number that the softmax does not see
    np.testing.assert_allclose(centred.numpy(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-4)


def test_miou_is_that_of_a_plain_loop_and_of_scikit_learn():
    g = torch.Generator().manual_seed(3)
    wanted, predicted = torch.randint(-1, 4, (7, 30), generator=g), torch.randint(0, 5, (7, 30), generator=g)
    counts = confusion(predicted, wanted, 6)  # class 4 is answered alone, class 5 neither answered nor there
    ious = []
    for c in range(6):
        both = sum(p == t == c for p, t in zip(predicted.flatten(), wanted.flatten(), strict=True))
        either = sum(t >= 0 and c in (p, t) for p, t in zip(predicted.flatten(), wanted.flatten(), strict=True))
        ious += [float(both) / either] if either else []
    assert len(ious) == 5
    value = float(miou(counts.sum(0)))
    assert value == pytest.approx(np.mean(ious))
    kept = wanted >= 0
    assert value == pytest.approx(jaccard_score(wanted[kept].numpy(), predicted[kept].numpy(), average="macro"))
    places = torch.randint(7, (3, 7), generator=g)  # resampled test sets
    for row, found in zip(places, statistic(counts, miou)(places), strict=True):
        t, p = wanted[row], predicted[row]
        again = jaccard_score(t[t >= 0].numpy(), p[t >= 0].numpy(), average="macro")
        assert float(found) == pytest.approx(again)


def halves(n, seed, t=4, size=8, d=6, noise=0.3, classes=2):
    """Pictures whose tokens tell the class of their patch, more or less; every patch is of one class."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (n, t, t), generator=g)
    x = noise * torch.randn(n, t * t, d, generator=g)
    x[..., :classes] += nn.functional.one_hot(truth.flatten(1), classes)
    near, weight = on_grid((t, t), (t * size, t * size))
    y = truth.repeat_interleave(size, 1).repeat_interleave(size, 2).flatten(1)
    return SegmentFeatures(x.half(), y, near[None], weight[None])


def test_the_protocol_chooses_on_training_samples_and_repeats_itself():
    train, test = halves(30, 0), halves(12, 1)
    probe = Segmentation(l2=(1.0, 1e-2, 1e-4), elements=64)
    state = torch.random.get_rng_state()
    score = probe(train, test)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert score.metric == "miou" and score.n == 12 and 0.6 < score.value < 1
    low, high = score.ci95
    assert low < score.value < high and low > 0.5
    with torch.inference_mode():  # where trainers evaluate
        assert torch.equal(probe(train, test).resampled, score.resampled)
    assert score.also["accuracy"].value > score.value  # of two classes
    flipped = SegmentFeatures(test.x, 1 - test.y, test.near, test.weight)
    assert probe(train, flipped).chosen == score.chosen and probe(train, flipped).value < 0.3
    assert Segmentation(l2=(0.1,))(train, test).chosen["holdout_miou"] is None
    strange = SegmentFeatures(test.x, test.y + 7, test.near, test.weight)  # classes that training has not
    assert probe(train, strange).value == 0
    blank = SegmentFeatures(train.x, torch.full_like(train.y, -1), train.near, train.weight)
    assert len(blank.labelled()) == 0
    with pytest.raises(ValueError, match="without a label"):
        probe(blank, test)


def test_padding_and_elements_without_a_class_take_no_part():
    train, test = halves(20, 0), halves(8, 1)
    padded = SegmentFeatures(
        nn.functional.pad(train.x, (0, 0, 0, 3), value=50.0), train.y, train.near, train.weight,
        nn.functional.pad(torch.ones(20, 16, dtype=torch.bool), (0, 3), value=False),
    )  # fmt: skip
    probe = Segmentation(l2=(1e-2,), elements=None, tolerance=1e-7)
    assert probe(padded, test).value == pytest.approx(probe(train, test).value)
    y = test.y.clone()
    y[:, ::3] = -1
    fitted = next(probe._path(train, [1e-2]))
    counts = tally(fitted, SegmentFeatures(test.x, y, test.near, test.weight))
    assert counts[:, 1].sum(1).tolist() == (y >= 0).sum(1).tolist() == counts[:, 2].sum(1).tolist()
    some = SegmentFeatures(test.x, y, test.near, test.weight).some(100)
    assert some.y.shape == (8, 100) and bool((some.y >= 0).all())
    few = torch.full_like(y, -1)
    few[:, :5] = 1
    assert SegmentFeatures(test.x, few, test.near, test.weight).some(100).mixture(torch.float32)[0].shape == (40, 128)


class Knows(nn.Module):
    """Its tokens are the classes of what they are made of: the mean class of each patch, one-hot."""

    def forward(self, view):
        pixels = view.data.float()[:, 0]
        cells = pixels.unfold(1, 8, 8).unfold(2, 8, 8).flatten(3).mean(-1)
        x = nn.functional.one_hot(cells.round().long().flatten(1), 3).float()
        b, n = x.shape[:2]
        index = torch.arange(n).expand(b, n)
        return Tokens(raw=x, pos=torch.zeros(b, n, 2), index=index, x=x, grid=tuple(cells.shape[1:]))


def stripes(root, n, train=0.5):
    """Pictures that are their own masks: grey values are classes, in wide stripes, cut at multiples of 64 pixels."""
    g = np.random.default_rng(0)
    for i in range(n):
        split = "train" if i < train * n else "test"
        classes = np.repeat(g.integers(0, 3, 3), 32)[None].repeat(48, 0).astype(np.uint8)
        for folder in ("images", "masks"):
            path = root / folder / split / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Pil.fromarray(classes).save(path)
    return root


def of_folder(root, view, **more):
    from functools import partial

    from mmssl.data.folder import Folder

    source = partial(Folder, root=str(root / "images"), segments=str(root / "masks"))
    return Data(Image(), 0, source=source, views={"x": view}, view=view, batch_size=4, workers=0, **more)


def test_an_encoder_that_knows_the_answer_gets_all_of_it(tmp_path):
    data = of_folder(stripes(tmp_path, 24), [CenterCrop(size=48)])
    parts = [embed_segments(Knows(), data.eval_loader(s, segments=True), None, 64, 12) for s in ("train", "test")]
    assert parts[0].y.shape == (12, 48 * 48) and len(parts[0].near) == 1
    score = Segmentation(l2=(1e-6,), elements=1000)(*parts)
    # stripes end where patches do, and answers change over half way between their middles: each pixel is right
    assert score.value == 1.0 and score.also["accuracy"].value == 1.0 and score.ci95 == (1.0, 1.0)


VIEWS = {
    "resize": [Resize(size=24), CenterCrop(size=24)],
    "crop": [RandomResizedCrop(size=20, scale=(0.3, 0.8), interpolation="nearest-exact"), Flip()],
    "pad": [CenterCrop(size=64), GaussianBlur(p=0)],
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_keeps_masks_and_images_aligned(tmp_path, name):
    g = np.random.default_rng(1)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(6):
        blocks = g.integers(1, 9, (3, 4)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
        Pil.fromarray(blocks).save(tmp_path / "images" / f"{i}.png")
        Pil.fromarray(np.where(blocks == 8, 255, blocks).astype(np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    batch = next(iter(of_folder(tmp_path, VIEWS[name]).eval_loader("train", segments=True)))
    pixels, classes = batch["x"].data[:, 0].long(), batch["segments"]
    assert classes.shape == pixels.shape and classes.dtype == torch.int64
    if name == "pad":  # 48 x 64 pixels in a square of 64
        assert bool((classes[:, :8] == -1).all() and (pixels[:, :8] == 0).all())
    expected = torch.where((pixels == 8) | (pixels == 0), -1, pixels)
    right = classes == expected
    if name == "resize":  # bicubic: pixels between blocks are of neither
        pool, grey = nn.functional.max_pool2d, pixels[:, None].float()
        right = right[(pool(grey, 3, 1, 1) == -pool(-grey, 3, 1, 1))[:, 0]]
        assert len(right) > 500
    assert bool(right.all()) and set(classes.unique().tolist()) == {-1, *range(1, 8)}
    plain = next(iter(of_folder(tmp_path, VIEWS[name]).eval_loader("train")))
    assert "segments" not in plain and torch.equal(plain["x"].data, batch["x"].data)  # reading masks changes no draw
    assert "segments" not in next(iter(of_folder(tmp_path, VIEWS[name]).train_dataloader()))


def test_masks_that_cannot_be_are_refused_by_name(tmp_path):
    root = stripes(tmp_path, 4)
    data = of_folder(root, [CenterCrop(size=96)])
    (root / "masks" / "train" / "00.png").unlink()  # a picture without a mask is unlabelled
    batch = next(iter(data.eval_loader("train", segments=True)))
    assert bool((of_folder(root, [CenterCrop(size=96)]).splits["train"].segments.of(0, batch["x"].data[0]) == -1).all())
    Pil.fromarray(np.zeros((5, 5), np.uint8)).save(root / "masks" / "train" / "01.png")
    with pytest.raises(ValueError, match=r"masks/train/01.png: 5x5 classes, but the image is 48x96"):
        list(of_folder(root, [CenterCrop(size=96)]).eval_loader("train", segments=True))
    Pil.fromarray(np.zeros((48, 96, 3), np.uint8)).save(root / "masks" / "train" / "01.png")
    with pytest.raises(ValueError, match="grey values or palette indices"):
        list(of_folder(root, [CenterCrop(size=96)]).eval_loader("train", segments=True))
    palette = Pil.fromarray(np.full((48, 96), 7, np.uint8), "L").convert("P")
    palette.putdata([7] * (48 * 96))
    palette.save(root / "masks" / "train" / "01.png")
    batch = next(iter(of_folder(root, [CenterCrop(size=96)]).eval_loader("train", segments=True)))
    assert sorted(batch["segments"][1].unique().tolist()) == [-1, 7]
    from mmssl.data.folder import Folder

    with pytest.raises(ValueError, match="side by side"):
        Folder(Image(), root=str(root), segments=str(root / "masks")).splits()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no file for any sample: looked for test/02 with .png"):
        Folder(Image(), root=str(root / "images"), segments=str(tmp_path / "empty")).splits()
    with pytest.raises(ValueError, match=r"lambda.*does not say what becomes of the classes"):
        mover(lambda sample, draws: sample)


def test_raw_tokens_are_what_an_encoder_gets():
    class Cut(nn.Module):
        def forward(self, view):
            return Tokens(raw=view.data, pos=view.data[..., :2] + 1, index=torch.arange(3).expand(2, 3))

    class Net(nn.Module):
        tokenizer = Cut()

    view = View(random(2, 3, 4), "toy")
    found = RawTokens(Net())(view).x
    assert found is not None and torch.equal(found, torch.cat([view.data, view.data[..., :2] + 1], -1))


def test_a_table_of_classes():
    table = SegmentTable(np.array([[1, -5], [2, 3], [0, 0]], np.int16))
    assert table.of(0, None).tolist() == [1, -1] and table.where(np.array([1, 2])).of(0, None).tolist() == [2, 3]


TINY = ["trainer.accelerator=cpu", "trainer.max_steps=2", "evaluation.protocols.linear=null", "encoder.dim=24",
        "evaluation.protocols.knn=null", "encoder.depth=1", "encoder.heads=2", "data.batch_size=4"]  # fmt: skip


def test_evaluate_segments_images_beside_the_baselines(tmp_path, capsys):
    root = stripes(tmp_path, 24)
    words = [*TINY, "data=folder", f"data.root={root / 'images'}", f"run.root={tmp_path / 'runs'}", "data.size=48",
             "tokenizer.patch=8", "objective.pixels.predictor.dim=16", "objective.pixels.predictor.depth=1",
             "objective.pixels.predictor.heads=2", "data.workers=0"]  # fmt: skip
    run = str(mmssl.pretrain("image/mae", words).path)
    assert main(["evaluate", run, "protocol=segmentation"]) == 2
    error = capsys.readouterr().err
    assert "with data=folder, the folder of the files" in error and "features of the encoder" not in error
    more = [f"data.source.segments={root / 'masks'}", "--json"]
    assert main(["evaluate", run, "protocol=segmentation", "evaluation.protocols.segmentation.elements=64", *more]) == 0
    entry = json.loads(capsys.readouterr().out)["eval"]["segmentation"]
    assert entry["metric"] == "miou" and entry["n_test"] == 12 and set(entry["also"]) == {"accuracy"}
    assert entry["raw_input"] > 0.95  # grey values are classes
    assert entry["random_init_ci95"][0] <= entry["random_init"] <= entry["random_init_ci95"][1]
    assert main(["evaluate", run, "protocol=segmentation", *more[:1], "view=[{_target_: view/of, name: x}]"]) == 2


def test_draws_are_the_same_for_points_and_their_classes():
    from mmssl.modalities.pointcloud import views

    points = random(50, 3)
    draws = Draws.of(0, 0, torch.tensor([4])).named("view")
    for view in (
        views.SamplePoints(count=20), views.SamplePoints(count=70, short="repeat"), views.CropCloud(),
        views.DropPoints(), views.NormalizeCloud(), views.Jitter(std=0), views.Rotate(degrees=0),
    ):  # fmt: skip
        moved = view.segments(torch.arange(50), points, draws)
        expected = view(points, draws)
        if isinstance(view, views.NormalizeCloud):
            expected = expected * (points - points.mean(0)).norm(dim=1).max() + points.mean(0)
        torch.testing.assert_close(points[moved], expected)
