import colorsys

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from mmssl.draws import Draws
from mmssl.parts import color_views as views


def image(channels=3, height=20, width=26, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


def draws(sample=0, epoch=0, seed=0):
    return Draws.of(seed, epoch, torch.tensor([sample]))


ALL = [views.ColorJitter(p=1.0), views.Grayscale(p=1.0)]


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


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_is_torchvisions(channels):
    strength = {"brightness": 0.4, "contrast": 0.5, "saturation": 0.6, "hue": 0.2}
    op = views.ColorJitter(**strength, p=1.0)
    reference = v2.ColorJitter(**strength)
    orders = set()
    for sample in range(30):
        order, factors = op.parameters(draws(sample))
        orders.add(tuple(order))
        names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
        params = {"fn_idx": torch.tensor(order)} | dict(zip(names, factors, strict=True))
        if channels == 1:  # there torchvision does nothing either, but says so
            params["saturation_factor"] = params["hue_factor"] = None
        picture = image(channels, seed=sample)
        apart = (op(picture, draws(sample)).int() - reference.transform(picture, params).int()).abs()
        # one level of the hue, where it is cut off at another side, may become more in a change behind it
        assert apart.max() <= (2 if channels == 3 else 0) and (apart > 0).float().mean() < 0.005
    assert len(orders) > 12


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.07, 0.4])
def test_hue_is_that_of_the_colour_circle(turn):
    picture = image(height=40)
    picture[:, 0], picture[1, 1], picture[2, 2] = 77, picture[0, 1], picture[1, 2]  # grey, and two channels alike
    made = picture.float()
    views._hue(made, turn)
    for row in range(0, 40, 3):
        for column in range(26):
            hue, saturation, value = colorsys.rgb_to_hsv(*(picture[:, row, column] / 255).tolist())
            exact = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            apart = 255.999 * torch.tensor(exact) - made[:, row, column]  # torchvision cuts this off
            assert apart.min() > -0.001 and apart.max() < 1.001


def test_color_jitter_ranges_and_zero():
    op = views.ColorJitter(brightness=0.4, contrast=1.5, saturation=0, hue=0.1)
    factors = torch.tensor([op.parameters(draws(i))[1] for i in range(400)])
    low, high = torch.tensor([0.6, 0.0, 1.0, -0.1]), torch.tensor([1.4, 2.5, 1.0, 0.1])
    assert (factors >= low - 1e-6).all() and (factors <= high + 1e-6).all()
    span = (factors.max(0).values - factors.min(0).values)[[0, 1, 3]]
    assert (span > 0.95 * (high - low)[[0, 1, 3]]).all()
    still = views.ColorJitter(brightness=0, contrast=0, saturation=0, hue=0, p=1)
    assert torch.equal(still(image(), draws()), image())


def test_color_jitter_of_many_channels_is_that_of_each():
    op = views.ColorJitter(p=1.0)
    picture = image(5)
    made = op(picture, draws(2))
    assert torch.equal(made, torch.cat([op(channel[None], draws(2)) for channel in picture]))


def test_grayscale_is_torchvisions():
    picture, five = image(), image(5)
    assert torch.equal(views.Grayscale(p=1)(picture, draws()), v2.Grayscale(3)(picture))
    assert torch.equal(views.Grayscale(p=1)(five, draws()), five)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"hue between 0 and 0\.5"):
        views.ColorJitter(hue=0.7)
    with pytest.raises(ValueError, match=r"view/grayscale: p has to be between 0 and 1 \(got 1\.5\)"):
        views.Grayscale(p=1.5)
