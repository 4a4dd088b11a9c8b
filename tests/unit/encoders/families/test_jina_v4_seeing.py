"""Settings of pictures in v4: what a checkpoint says, what a user may change, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from actors.batching.budget import BudgetController
from actors.encoders import describe, load_encoder
from actors.encoders.compute import attention
from actors.encoders.compute.device import Compute
from actors.encoders.encoder import Encoder
from actors.encoders.families import jina_v4
from actors.encoders.families.jina_v4_vision_layout import tower_sizes
from actors.encoders.preprocessor import FILE
from actors.errors import ConfigError, DataError, ModelError
from actors.images.settings import PictureSettings
from tests.checkpoints import SENTENCES, write_bert, write_jina_v4
from tests.checkpoints.jina_v4 import edit
from tests.unit.encoders.families.test_jina_v4_pictures import MIXED, PIXELS, prepare, tower_of
from tests.unit.encoders.test_gpu_waits import META, counting

PASSAGE: dict[str, Any] = {"task": "retrieval.passage", "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_jina_v4(tmp_path_factory.mktemp("v4") / "model")


@pytest.fixture
def other(folder, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def change(path, **settings):
    content = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# The spec


def test_bounds_come_from_the_repository(folder, other):
    assert describe(str(folder), **PASSAGE).pictures == PictureSettings(3136, 602_112)
    change(other / FILE, min_pixels=None, max_pixels=None, size={"shortest_edge": 784, "longest_edge": 1_003_520})
    assert describe(str(other), **PASSAGE).pictures == PictureSettings(784, 1_003_520)
    # As in transformers, the older keys have precedence.
    change(other / FILE, min_pixels=3136, max_pixels=12_845_056)
    assert describe(str(other), **PASSAGE).pictures == PictureSettings(3136, 12_845_056)


def test_a_user_may_change_the_upper_bound_orientation_and_transparency(folder):
    spec = describe(str(folder), max_pixels=10_000, exif="ignore", alpha="drop", **PASSAGE)
    assert spec.pictures == PictureSettings(3136, 10_000, exif="ignore", alpha="drop")
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_pixels": 3135}, "encoder.max_pixels 3135 is below 3136"),
        ({"exif": "maybe"}, "encoder.exif 'maybe' is not known; use one of rotate, ignore"),
        ({"alpha": "black"}, "encoder.alpha 'black' is not known; use one of white, drop"),
    ],
)
def test_other_settings_are_refused(folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        describe(str(folder), **settings, **PASSAGE)


@pytest.mark.parametrize("settings", [{"max_pixels": 10_000}, {"exif": "ignore"}, {"alpha": "drop"}])
def test_a_model_for_texts_refuses_settings_and_pictures(tmp_path, settings):
    blind = write_jina_v4(tmp_path / "blind", vision=None)
    for path, task in ((write_bert(tmp_path / "bert"), None), (blind, "retrieval.passage")):
        with pytest.raises(
            ConfigError, match=rf"encoder\.{next(iter(settings))} is for pictures, and .* takes texts only"
        ):
            describe(str(path), task=task, **settings)
        spec = describe(str(path), task=task)
        assert spec.pictures is None
        with pytest.raises(ConfigError, match="takes texts only: its checkpoint has no vision tower"):
            spec.seeing()
        with pytest.raises(ConfigError, match="takes texts only"):
            load_encoder(spec).encode_images(PIXELS[:1])


def test_lineage_of_texts_is_unchanged_and_that_of_pages_has_their_settings(folder):
    spec = describe(str(folder), **PASSAGE)
    changed = describe(str(folder), exif="ignore", max_pixels=10_000, **PASSAGE)
    assert spec.lineage().keys().isdisjoint({"modality", "min_pixels", "max_pixels", "exif", "alpha"})
    assert changed.lineage() == spec.lineage()
    seen = {
        "modality": "page",
        "min_pixels": 3136,
        "max_pixels": 602_112,
        "factor": 28,
        "exif": "rotate",
        "alpha": "white",
    }
    assert spec.seeing().lineage() == spec.lineage() | seen
    assert changed.seeing().lineage() == spec.lineage() | seen | {"exif": "ignore", "max_pixels": 10_000}
    assert json.loads(json.dumps(spec.seeing().lineage())) == spec.seeing().lineage()
    assert spec.seeing().query_side().modality == "page"


# Checkpoints


def test_only_pictures_need_the_file_of_the_preprocessor(other):
    (other / FILE).unlink()
    spec = describe(str(other), **PASSAGE)
    assert load_encoder(spec).encode(SENTENCES[:1]).shape == (1, 32)
    message = rf"has a vision tower and no {FILE}, which says how large its pictures are"
    with pytest.raises(ModelError, match=message):
        spec.seeing()
    with pytest.raises(ModelError, match=message):
        describe(str(other), max_pixels=10_000, **PASSAGE)


@pytest.mark.parametrize(
    "settings",
    [
        {"patch_size": 16},
        {"merge_size": 1},
        {"resample": 2},
        {"do_resize": False},
        {"image_mean": [0.5, 0.5, 0.5]},
        {"image_std": [0.5]},
        {"rescale_factor": 1.0},
        {"max_pixels": None},
        {"min_pixels": "many"},
        {"min_pixels": 700_000},
    ],
    ids=str,
)
def test_another_way_to_prepare_pictures_is_refused(other, settings):
    change(other / FILE, **settings)
    with pytest.raises(ModelError, match=rf"{FILE} (has {next(iter(settings))}|bounds the pixels of pictures by)"):
        describe(str(other), **PASSAGE).seeing()


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_act": "gelu"},
        {"patch_size": 16},
        {"spatial_merge_size": 4},
        {"num_heads": 3},
        {"window_size": 100},
        {"window_size": 0},
        {"fullatt_block_indexes": 1},
        {"out_hidden_size": 16},
        {"rope_parameters": {"rope_theta": 5.0}},
        {"depth": 2},  # fewer than the tensors
        {"depth": 4},
        {"intermediate_size": 41},
    ],
    ids=str,
)
def test_another_tower_is_refused(folder, tmp_path, settings):
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    copy = edit(folder, tmp_path / "copy", vision_config=vision | settings)
    with pytest.raises(ModelError):
        describe(str(copy), **PASSAGE)


def test_settings_that_transformers_leaves_out_have_its_defaults(folder, tmp_path):
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    shorter = {
        key: vision[key] for key in ("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size")
    }
    copy = edit(folder, tmp_path / "copy", vision_config={**shorter, "fullatt_block_indexes": [1]})
    expected = load_encoder(str(folder), **PASSAGE).encode_images(PIXELS)
    np.testing.assert_array_equal(load_encoder(str(copy), **PASSAGE).encode_images(PIXELS), expected)
    published = Qwen2_5_VLVisionConfig()
    sizes = tower_sizes({"vision_config": {}}, published.out_hidden_size)
    assert (sizes.blocks, sizes.hidden, sizes.inner) == (
        published.depth,
        published.hidden_size,
        published.intermediate_size,
    )
    assert (sizes.heads, set(sizes.whole)) == (published.num_heads, set(published.fullatt_block_indexes))


def test_a_tower_without_settings_is_refused(folder, tmp_path):
    with pytest.raises(ModelError, match="vision_config None where the settings of a vision tower are needed"):
        describe(str(edit(folder, tmp_path / "copy", vision_config=None)), **PASSAGE)


@pytest.mark.parametrize("sections", [[1, 1], [1, 1, 1], [2, 2, -1], "all"])
def test_rotary_sections_that_are_no_head_are_refused(folder, tmp_path, sections):
    rope = {"mrope_section": sections, "rope_type": "default"}
    with pytest.raises(ModelError, match="mrope_section"):
        describe(str(edit(folder, tmp_path / "copy", text={"rope_scaling": rope})), **PASSAGE)


def test_a_damaged_weight_of_the_tower_is_refused_when_it_is_loaded(other):
    tensors = load_file(other / "model.safetensors")
    tensors["visual.blocks.1.mlp.up_proj.bias"][3] = torch.nan
    save_file(tensors, other / "model.safetensors")
    spec = describe(str(other), **PASSAGE)
    load_encoder(spec).encode(SENTENCES[:1])
    with pytest.raises(ModelError, match=r"visual\.blocks\.1\.mlp\.up_proj\.bias' that are not finite"):
        load_encoder(spec.seeing())


# Pictures in a notebook


def test_files_bytes_images_and_arrays_are_encoded_alike(folder, tmp_path):
    encoder = load_encoder(str(folder), **PASSAGE)
    assert tower_of(encoder) is None
    Image.fromarray(PIXELS[5]).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    vectors = encoder.encode_images(
        [data, str(tmp_path / "a.png"), tmp_path / "a.png", PIXELS[5], Image.fromarray(PIXELS[5]), PIXELS[0]]
    )
    np.testing.assert_allclose(vectors[:5], vectors[:1].repeat(5, axis=0), atol=1e-6)
    assert (vectors[5] @ vectors[0]) < 0.999
    seeing = load_encoder(encoder.spec.seeing())
    rows = seeing.encode_rows(prepare(seeing, [PIXELS[5]])).outputs[0].flatten().to_numpy()
    np.testing.assert_allclose(vectors[0], rows, atol=1e-6)
    assert encoder.encode_images([]).shape == (0, 32)
    assert encoder.spec.modality == "text"  # as loaded


def test_pictures_are_resized_by_the_settings(folder):
    big = np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8)
    small = load_encoder(str(folder), max_pixels=40_000, **PASSAGE)
    before = small.stats.tokens
    small.encode_images([big])
    assert small.stats.tokens - before - 8 * 6 in range(8, 40)  # the prompt


def test_an_image_keeps_its_pixels_and_is_turned_upright(folder):
    encoder = load_encoder(str(folder), **PASSAGE)
    turned = Image.fromarray(np.rot90(PIXELS[5]))
    exif = turned.getexif()
    exif[0x0112] = 6
    before = np.asarray(turned).copy()
    vectors = encoder.encode_images([turned, PIXELS[5]])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    np.testing.assert_array_equal(np.asarray(turned), before)


def test_tasks_choose_the_adapter_of_pictures(folder):
    encoder = load_encoder(str(folder), **PASSAGE)
    one, other = (encoder.encode_images(PIXELS[:1], task=task) for task in ("code.query", "text-matching"))
    same = encoder.encode_images(PIXELS[:1])
    assert abs(float((one * other).sum())) < 0.999
    np.testing.assert_allclose(same, encoder.encode_images(PIXELS[:1], task="retrieval.query"), atol=1e-6)
    with pytest.raises(ConfigError, match="no task 'search'"):
        encoder.encode_images(PIXELS[:1], task="search")


@pytest.mark.slow
@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"no picture",
        "/nowhere/a.png",
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 3)),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["empty", "text", "no file", "two axes", "floats", "no area"],
)
def test_an_unusable_picture_is_named(folder, image):
    encoder = load_encoder(str(folder), **PASSAGE)
    with pytest.raises(DataError, match="image 1 cannot be encoded: "):
        encoder.encode_images([PIXELS[0], image])
    with pytest.raises(ConfigError, match="takes a list of pictures"):
        encoder.encode_images(image)


# A GPU


def test_a_tower_that_does_not_fit_the_device_is_named(folder, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    encoder = load_encoder(str(folder), **PASSAGE)
    monkeypatch.setattr(jina_v4, "build_tower", full)
    with pytest.raises(ConfigError, match="does not fit the memory of cpu"):
        encoder.encode_images(PIXELS[:1])


@pytest.mark.slow
def test_the_host_does_not_wait_for_the_device_at_pictures(folder, monkeypatch):
    monkeypatch.setattr(attention, "_has_varlen", lambda query: query.shape[2] % 8 == 0)
    spec = describe(str(folder), **PASSAGE).seeing()
    encoder = Encoder(spec, compute=Compute(META, torch.bfloat16), budget=BudgetController([60]))
    assert tower_of(encoder).dtype == torch.bfloat16
    rows = prepare(encoder, MIXED)
    with counting(encoder):
        encoder.encode_rows(rows)  # for the tables that grow
    before = encoder.stats.micro_batches
    with counting(encoder) as events:
        encoder.encode_rows(rows)
    count = encoder.stats.micro_batches - before
    assert count > 3
    assert set(events) == {"sent", "leaves", "awaited"}
    assert events[-count:] == ["awaited"] * count
