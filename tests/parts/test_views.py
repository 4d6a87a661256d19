import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from mmssl.draws import Draws
from mmssl.parts import views


def image(channels=3, height=20, width=26, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


def draws(sample=0, epoch=0, seed=0):
    return Draws.of(seed, epoch, torch.tensor([sample]))


ALL = [
    views.RandomResizedCrop(size=12),
    views.Flip(),
    views.Resize(size=12),
    views.CenterCrop(size=12),
    views.GaussianBlur(p=1.0),
    views.Solarize(p=1.0),
]


@pytest.mark.parametrize("op", ALL, ids=lambda op: type(op).__name__)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_and_pure_in_the_draws(op, channels):
    sample = image(channels)
    before = sample.clone()
    made = op(sample, draws(3))
    assert made.dtype == torch.uint8 and made.shape[0] == channels
    assert torch.equal(op(sample, draws(3)), made) and torch.equal(sample, before)
    state = torch.random.get_rng_state()
    op(sample, draws(4))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("op", ALL, ids=lambda op: type(op).__name__)
def test_all_frames_of_a_clip_are_treated_alike(op):
    clip = torch.stack([image(seed=i) for i in range(5)])
    for sample in range(3):
        made = op(clip, draws(sample))
        assert torch.equal(made, torch.stack([op(frame, draws(sample)) for frame in clip]))


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (20, 26, (0.2, 1.0), (3 / 4, 4 / 3)),
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (4, 200, (0.9, 1.0), (0.75, 1.33)),  # too wide for any try: the central part
        (200, 4, (0.9, 1.0), (0.75, 1.33)),
        (6, 7, (2.0, 3.0), (0.5, 2.0)),  # never fits: the whole
    ],
)
def test_random_resized_crop_is_torchvisions(monkeypatch, height, width, scale, ratio):
    """torchvision's own class, fed with our numbers, takes the same part and makes the same pixels."""
    op = views.RandomResizedCrop(size=10, scale=scale, ratio=ratio)
    reference = v2.RandomResizedCrop(10, scale, ratio, InterpolationMode.BICUBIC, antialias=True)
    for sample in range(40):
        rows = iter(draws(sample).named("crop").uniform(10, 4)[0].tolist())
        state = {}

        def uniform_(tensor, low, high, rows=rows, state=state):
            if state.get("next", 0) == 0:
                state["row"] = next(rows)
            value = state["row"][state.get("next", 0)]
            state["next"] = 1 - state.get("next", 0)
            return tensor.fill_(low + (high - low) * value)

        def randint(low, high, size, state=state):
            state["int"] = state.get("int", 1) + 1
            return torch.tensor([low + int(state["row"][state["int"]] * (high - low))])

        picture = image(3, height, width, sample)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "uniform_", uniform_)
            patch.setattr(torch, "randint", randint)
            wanted = reference.make_params([picture])
        top, left, h, w = op.box(height, width, draws(sample))
        # log and exp are float32 there and float64 here: a side may round the other way once in a great while
        assert (top, left, h, w) == (wanted["top"], wanted["left"], wanted["height"], wanted["width"])
        assert torch.equal(op(picture, draws(sample)), reference.transform(picture, wanted))


def test_crops_of_channels_that_lie_together_are_those_of_planes():
    planes = image(3, 60, 81)
    together = planes.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for sample in range(10):
        op = views.RandomResizedCrop(size=24, interpolation=("bicubic", "bilinear")[sample % 2])
        made = op(together, draws(sample))
        assert torch.equal(made, op(planes, draws(sample))) and made.stride(0) == 1


def test_bytes_are_what_torch_makes_of_floats():
    values = torch.arange(256, dtype=torch.float32)[:, None] + torch.tensor([0.0, 0.1, 0.5, 0.9999])
    assert torch.equal(views.as_bytes(values), values.to(torch.uint8))
    assert torch.equal(views.as_bytes(values)[:, 1], torch.arange(256).to(torch.uint8))


def test_crops_cover_the_scale_they_were_given():
    op = views.RandomResizedCrop(size=8, scale=(0.3, 0.8))
    boxes = [op.box(200, 200, draws(i)) for i in range(500)]
    areas = torch.tensor([h * w / 40000 for _, _, h, w in boxes])
    ratios = torch.tensor([w / h for _, _, h, w in boxes])
    assert 0.29 < areas.min() < 0.32 and 0.75 < areas.max() < 0.81
    assert 0.73 < ratios.min() < 0.77 and 1.30 < ratios.max() < 1.36
    assert torch.quantile(ratios.log(), 0.5).abs() < 0.05  # uniform in the logarithm


def test_resize_and_center_crop_are_torchvisions():
    picture = image(3, 30, 41)
    for interpolation in ("bilinear", "bicubic"):
        op = views.Resize(size=17, interpolation=interpolation)
        reference = v2.Resize(17, InterpolationMode(interpolation), antialias=True)
        assert torch.equal(op(picture, draws()), reference(picture))
    for size in (16, 29, 50):
        assert torch.equal(views.CenterCrop(size=size)(picture, draws()), v2.CenterCrop(size)(picture))


def test_flip_and_how_often():
    op, picture = views.Flip(p=0.3), image()
    made = [op(picture, draws(i)) for i in range(1000)]
    flipped = [torch.equal(one, picture.flip(-1)) for one in made]
    assert all(now or torch.equal(one, picture) for now, one in zip(flipped, made, strict=True))
    assert 250 < sum(flipped) < 350  # 3.4 standard deviations
    assert sum(torch.equal(views.Flip(p=0)(picture, draws(i)), picture) for i in range(50)) == 50
    assert sum(torch.equal(views.Flip(p=1)(picture, draws(i)), picture) for i in range(50)) == 0


def blurred(picture, side, sigma):
    """The blur by one kernel in double precision, not rounded."""
    place = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.exp(-(place**2) / (2 * sigma**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    wide = torch.nn.functional.pad(picture.double(), (side // 2,) * 4, mode="reflect")
    return torch.nn.functional.conv2d(wide.unsqueeze(1), kernel[None, None]).squeeze(1)


@pytest.mark.parametrize(("kernel", "side"), [(5, 5), (None, 3), (19, 19)])
def test_gaussian_blur_is_torchvisions(kernel, side):
    op = views.GaussianBlur(kernel=kernel, sigma=(0.5, 1.5), p=1)
    sigmas = []
    for sample in range(10):
        sigmas.append(float(draws(sample).named("gaussian_blur").named("sigma").uniform(1, low=0.5, high=1.5)))
        picture = image(4, seed=sample)
        made, exact = op(picture, draws(sample)), blurred(picture, side, sigmas[-1])
        assert (made - exact).abs().max() < 0.501, "not the rounded value of the blur"
        apart = (made.int() - v2.GaussianBlur(side, sigma=(sigmas[-1], sigmas[-1]))(picture).int()).abs()
        assert apart.max() <= 1 and apart.float().mean() < 0.001  # where a value lies between two bytes
    assert max(sigmas) - min(sigmas) > 0.5


def test_simclr_kernel_is_a_tenth_of_the_side():
    op, picture = views.GaussianBlur(sigma=(2.0, 2.0), p=1), image(1, 224, 230)
    made = op(picture, draws())
    assert (made - blurred(picture, 23, 2.0)).abs().max() < 0.501
    assert (made - blurred(picture, 13, 2.0)).abs().max() > 0.6  # which a smaller kernel would not be


def test_a_clip_is_blurred_frame_by_frame():
    op, clip = views.GaussianBlur(p=1), torch.stack([image(seed=i) for i in range(3)])
    assert torch.equal(op(clip, draws()), torch.stack([op(frame, draws()) for frame in clip]))


def test_operations_do_not_share_their_chances():
    """Flip and solarize of one sample are independent, though both happen with p = 0.5."""
    picture = image(1)
    flips = [not torch.equal(views.Flip()(picture, draws(i)), picture) for i in range(400)]
    solar = [not torch.equal(views.Solarize(p=0.5)(picture, draws(i)), picture) for i in range(400)]
    assert 160 < sum(a == b for a, b in zip(flips, solar, strict=True)) < 240


def test_solarize_is_torchvisions():
    for channels in (1, 3):
        picture = image(channels)
        wanted = v2.RandomSolarize(100, p=1)(picture)
        assert torch.equal(views.Solarize(threshold=100, p=1)(picture, draws()), wanted)
    five = image(5)
    assert torch.equal(views.Solarize(p=1)(five, draws())[3:4], views.Solarize(p=1)(five[3:4], draws()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: views.Flip(p=1.5), r"view/flip: p has to be between 0 and 1 \(got 1\.5\)"),
        (lambda: views.Resize(size=8, interpolation="bicubi"), "unknown 'bicubi'; did you mean 'bicubic'"),
        (
            lambda: views.RandomResizedCrop(size=8, scale=(1.0, 0.2)),
            "scale has to be two positive numbers in ascending",
        ),
        (lambda: views.GaussianBlur(kernel=4), r"kernel has to be odd and positive \(got 4\); try 5"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
