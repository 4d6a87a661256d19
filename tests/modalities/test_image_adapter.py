import io

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from torchvision.io import decode_image
from torchvision.transforms.v2 import functional as F

from mmssl.modalities.image.adapter import Image
from mmssl.modalities.image.tokenizer import ImageTokenizer

ADAPTER = Image()
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
RGB = Pil.fromarray(PIXELS)


def encoded(image, kind, **said):
    out = io.BytesIO()
    image.save(out, kind, **said)
    return out.getvalue()


def chw(image):
    pixels = np.array(image)
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_lossless_files_give_their_pixels(kind, mode):
    image = RGB.convert(mode)
    sample = ADAPTER.decode(encoded(image, kind))
    assert sample.dtype == torch.uint8 and torch.equal(sample, chw(image))


def test_lossless_webp():
    assert torch.equal(ADAPTER.decode(encoded(RGB, "WEBP", lossless=True)), chw(RGB))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_torchvisions(mode):
    blob = encoded(RGB.convert(mode), "JPEG")
    sample = ADAPTER.decode(blob)
    assert torch.equal(sample, decode_image(torch.frombuffer(bytearray(blob), dtype=torch.uint8)))
    assert sample.shape == (len(mode), 9, 12)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_palettes_become_colours(kind):
    image = RGB.convert("P", palette=Pil.Palette.ADAPTIVE, colors=16)
    assert torch.equal(ADAPTER.decode(encoded(image, kind)), chw(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_one_bit_is_black_and_white(kind):
    image = RGB.convert("1")
    assert torch.equal(ADAPTER.decode(encoded(image, kind)), chw(image.convert("L")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(kind):
    deep = np.array([[0, 128, 129, 257], [32768, 65406, 65407, 65535]], dtype=np.uint16)
    wanted = torch.from_numpy(np.round(deep * (255 / 65535)).astype(np.uint8))
    assert torch.equal(ADAPTER.decode(encoded(Pil.fromarray(deep), kind))[0], wanted)


def test_cmyk_becomes_rgb():
    smooth = Pil.fromarray(np.tile(np.linspace(0, 255, 32, dtype=np.uint8)[:, None, None], (1, 32, 3)))
    sample = ADAPTER.decode(encoded(smooth.convert("CMYK"), "JPEG", quality=95))
    assert sample.shape == (3, 32, 32)
    assert (sample.float() - chw(smooth).float()).abs().mean() < 3


def test_the_first_frame_of_an_animation():
    first, second = (Pil.new("P", (4, 4), colour) for colour in (0, 1))
    for image in (first, second):
        image.putpalette([10, 20, 30, 200, 210, 220])
    blob = encoded(first, "GIF", save_all=True, append_images=[second])
    assert ADAPTER.decode(blob).unique(dim=2).flatten(1)[:, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 7)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_arrays_of_any_number_of_channels(shape, kind):
    pixels = np.random.default_rng(1).integers(0, np.iinfo(kind).max, shape, dtype=kind)
    out = io.BytesIO()
    np.save(out, pixels)
    wanted = pixels if kind == np.uint8 else np.round(pixels / 257).astype(np.uint8)
    assert torch.equal(ADAPTER.decode(out.getvalue()), chw(wanted))


@pytest.mark.parametrize("pixels", [np.zeros((3, 3), np.float32), np.zeros(3, np.uint8), np.array([["a"]], object)])
def test_other_arrays_are_refused(pixels):
    out = io.BytesIO()
    np.save(out, pixels)
    with pytest.raises(ValueError, match=r"no known range|of shape \(h, w\)|allow_pickle"):
        ADAPTER.decode(out.getvalue())


@pytest.mark.parametrize("blob", [b"", b"text", encoded(RGB, "PNG")[:60], encoded(RGB, "JPEG")[:40], b"RIFF1234WEBP"])
def test_what_is_no_image_is_a_value_error(blob):
    with pytest.raises(ValueError, match="not a readable image"):
        ADAPTER.decode(blob)


def test_channels_are_converted():
    sample, grey, alpha = chw(RGB), chw(RGB.convert("L")), chw(RGB.convert("RGBA"))
    assert torch.equal(ADAPTER.decode(encoded(RGB.convert("RGBA"), "PNG"), 3), sample)
    assert torch.equal(ADAPTER.decode(encoded(RGB.convert("LA"), "PNG"), 1), grey)
    assert torch.equal(ADAPTER.convert(grey, 3), grey.repeat(3, 1, 1))
    assert torch.equal(ADAPTER.convert(alpha, 1), ADAPTER.convert(sample, 1))
    for reference in (F.rgb_to_grayscale(sample), grey):  # both round in their own way
        assert (ADAPTER.convert(sample, 1).int() - reference.int()).abs().max() <= 1
    with pytest.raises(ValueError, match=r"data\.channels=3, but an image has 7 channels.*set data\.channels=7"):
        ADAPTER.convert(torch.zeros(7, 2, 2, dtype=torch.uint8), 3)


def test_collate():
    samples = [chw(RGB), chw(RGB) // 2]
    assert torch.equal(ADAPTER.collate(samples), torch.stack(samples))
    with pytest.raises(ValueError, match=r"images of 1 and 3 channels; set data\.channels=3"):
        ADAPTER.collate([samples[0], samples[0][:1]])
    with pytest.raises(ValueError, match=r"different sizes \(9x11, 9x12\).*data\.views"):
        ADAPTER.collate([samples[0], samples[0][..., 1:]])


def test_facts_are_means_over_all_pixels():
    rng = np.random.default_rng(2)
    samples = [torch.from_numpy(rng.integers(0, 256, (4, h, w), dtype=np.uint8)) for h, w in ((3, 5), (8, 2), (1, 9))]
    facts = ADAPTER.facts(iter(samples))
    pixels = torch.cat([sample.flatten(1) for sample in samples], 1).double() / 255
    assert facts["mean"] == pytest.approx(pixels.mean(1).tolist())
    assert facts["std"] == pytest.approx(pixels.std(1, correction=0).tolist())
    wanted = {"channels": 4, "height": [1, 8], "width": [2, 9], "counted": 3}
    assert {key: facts[key] for key in wanted} == wanted
    with pytest.raises(ValueError, match=r"\(1 with 3, 3 with 4\); set data\.channels=3"):
        ADAPTER.facts([*samples, samples[0][:3]])
    with pytest.raises(ValueError, match="no readable image"):
        ADAPTER.facts([])


def test_baseline_is_pixels_at_32():
    sample = torch.arange(3 * 64 * 64).reshape(3, 64, 64).to(torch.uint8)
    vector = ADAPTER.baseline(sample)
    wanted = F.resize(sample.float() / 255, [32, 32], antialias=True).flatten()
    torch.testing.assert_close(vector, wanted)
    small = torch.randint(0, 256, (1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ADAPTER.baseline(small), small.flatten() / 255)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (6, [0, 1, 2])])
def test_picture(channels, shown):
    sample = torch.arange(channels * 6, dtype=torch.uint8).reshape(channels, 2, 3)
    picture = ADAPTER.picture(sample)
    assert picture.dtype == np.uint8 and picture.shape == (2, 3, 3)
    assert np.array_equal(picture, sample[shown].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_pixels_are_normalised_alike_in_either_order_of_memory(channels, kind):
    facts = {"channels": channels, "mean": [0.4, 0.5, 0.6][:channels], "std": [0.2, 0.3, 0.1][:channels]}
    planes = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, channels, 8, 12), dtype=np.uint8))
    planes = planes if kind == torch.uint8 else planes / 255
    before, together = planes.clone(), planes.contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(facts[name])[:, None, None] * 255 for name in ("mean", "std"))
    wanted = ((planes.float() if kind == torch.uint8 else planes * 255) - mean) / std
    tokenizer = ImageTokenizer(facts, size=[8, 12], patch=4)
    for images in (planes, together):
        assert torch.equal(tokenizer.normalized(images), wanted)
        assert torch.equal(images, before)
