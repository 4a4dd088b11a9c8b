"""Sizes and pixels that a model gets, held against transformers' own classes."""

from __future__ import annotations

import io
from importlib.resources import files

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from actors.images.errors import UnfitPicture
from actors.images.pixels import fit, grid_of, pack_pixels, resized, unpack_pixels
from actors.images.settings import PictureSettings

SIDES = st.one_of(st.integers(1, 100), st.integers(1, 20_000))


@given(SIDES, SIDES, st.sampled_from([602_112, 1_003_520, 12_845_056, 28 * 28]), st.sampled_from([3136, 28 * 28]))
def test_sizes_are_those_of_transformers(height, width, largest, smallest):
    settings = PictureSettings(min(smallest, largest), largest)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match="aspect ratio"):
            smart_resize(height, width, 28, settings.min_pixels, largest)
        with pytest.raises(UnfitPicture, match="200 times"):
            resized(height, width, settings)
    else:
        assert resized(height, width, settings) == smart_resize(height, width, 28, settings.min_pixels, largest)


def test_a_picture_without_an_area_is_refused():
    with pytest.raises(UnfitPicture, match="no area") as caught:
        resized(0, 10, PictureSettings(3136, 602_112))
    assert caught.value.reason == "bad_shape"


@pytest.mark.parametrize("size", [(300, 200), (33, 71), (1400, 900), (56, 84), (42, 70)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_transformers(size, mode):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    image = Image.fromarray(np.random.default_rng(7).integers(0, 256, shape, np.uint8))
    settings = PictureSettings(3136, 200_000)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 200_000})
    theirs = processor.preprocess([image.convert("RGB")], do_rescale=False, do_normalize=False, return_tensors="np")
    packed = fit(image, settings)
    rgb = unpack_pixels(packed)
    rows, columns = grid_of(packed)
    assert theirs["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]
    blocks = rgb.reshape(rows, 2, 14, columns, 2, 14, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    patches = np.repeat(blocks[:, :, :, :, :, None], 2, axis=5).reshape(4 * rows * columns, -1)
    assert np.array_equal(theirs["pixel_values"], patches)


@pytest.mark.parametrize(("largest", "most", "above_one"), [(602_112, 8, 0.001), (250_000, 2, 1e-5), (20_000, 1, 0)])
@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_pixels_are_close_to_those_of_torchvision(name, largest, most, above_one):
    """torchvision's resize is this call, bit for bit; docs/pages.md states the difference."""
    image = Image.open(io.BytesIO((files("sklearn") / "datasets" / "images" / name).read_bytes()))
    ours = unpack_pixels(fit(image, PictureSettings(3136, largest)))
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(whole, size=ours.shape[:2], mode="bicubic", antialias=True)[0]
    apart = np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy())
    assert apart.max() <= most
    assert (apart > 1).mean() <= above_one


def test_the_binary_form_is_read_without_a_copy():
    rgb = np.arange(28 * 56 * 3, dtype=np.uint8).reshape(28, 56, 3)
    data = pack_pixels(rgb)
    assert len(data) == 8 + rgb.nbytes
    assert grid_of(data) == (1, 2)
    assert np.array_equal(unpack_pixels(data), rgb)
    assert not unpack_pixels(data).flags.owndata
