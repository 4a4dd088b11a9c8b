from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from actors.encoders import describe, load_encoder
from actors.encoders.compute.device import Compute
from actors.encoders.encoder import Encoder
from actors.encoders.families.jina_v4_layout import adapter_of
from actors.errors import ConfigError, DataError
from actors.text.tokenizer import Tokenizer
from tests.checkpoints import SENTENCES, write_jina_v4
from tests.checkpoints.jina_v4 import ADAPTERS, PROMPTS, TASKS, edit
from tests.examples import examples
from tests.unit.encoders.jina_v4_oracle import Oracle, split_adapters

TEXTS = [*SENTENCES, "", "x", SENTENCES[0] * 4]
EACH = ["retrieval.query", "code.passage", "text-matching", *TASKS, "retrieval.passage", "code.query"]
LAYOUTS: dict[str, dict[str, Any]] = {
    "old": {"keys": "old"},
    "new": {"keys": "new"},
    "flat": {"keys": "old", "nested": False},
    "words alone": {"keys": "new", "vision": False},
}


def load(folder, task="retrieval.passage", **settings):
    return load_encoder(str(folder), task=task, dtype="float32", **settings)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One model in 16-bit files, as published, in each layout."""
    root = tmp_path_factory.mktemp("v4")
    return {name: write_jina_v4(root / name, dtype=torch.bfloat16, **how) for name, how in LAYOUTS.items()}


@pytest.fixture(scope="module")
def oracle(folders, tmp_path_factory):
    return Oracle(folders["old"], split_adapters(folders["old"], tmp_path_factory.mktemp("split")))


@pytest.fixture(scope="module", params=LAYOUTS)
def encoder(request, folders):
    return load(folders[request.param])


@pytest.fixture(scope="module")
def main(folders):
    return load(folders["old"])


# Numbers


@pytest.mark.slow
@pytest.mark.parametrize("task", [None, *TASKS])
def test_every_layout_matches_transformers_and_peft(encoder, oracle, task):
    texts = TEXTS if task else [text for text in TEXTS if text]
    tasks = [task] * len(texts)
    rows = encoder.tokenizer.tokenize(texts, tasks).ids
    adapter = task and adapter_of(task)
    expected = oracle.vectors(rows.to_pylist(), [adapter] * len(texts))
    np.testing.assert_allclose(encoder.encode(texts, task=tasks), expected, atol=1e-5, rtol=0)
    states = encoder.encode_token_states(rows, tasks)
    np.testing.assert_allclose(states[0], oracle.states(rows[0].as_py(), adapter), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("keys", ["old", "new"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_merged_checkpoint_matches_transformers_and_its_adapter(tmp_path, keys, adapter):
    folder = write_jina_v4(tmp_path / "merged", merged=adapter, keys=keys)
    encoder = load(folder, task="passage")
    assert encoder.spec.tasks == ("query", "passage")
    rows = encoder.tokenizer.tokenize(TEXTS).ids
    expected = Oracle(folder).vectors(rows.to_pylist(), [None] * len(TEXTS))
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5, rtol=0)
    unmerged = load(write_jina_v4(tmp_path / "beside"))
    for side in ("query", "passage"):
        task = adapter if adapter == "text-matching" else f"{adapter}.{side}"
        if PROMPTS[task] == encoder.spec.prompts[side]:
            actual = encoder.encode(TEXTS, task=side)
            np.testing.assert_allclose(actual, unmerged.encode(TEXTS, task=task), atol=1e-5, rtol=0)


def test_tasks_and_base_give_different_vectors(main):
    vectors = main.encode(["the same text"] * 6, task=[None, *TASKS])
    alike = np.abs(vectors @ vectors.T - 1) < 0.01
    # Some tasks share an adapter or a prompt, but no two share both.
    assert (alike == np.eye(6, dtype=bool)).all()


@pytest.mark.slow
def test_mixed_tasks_give_the_vectors_of_each_task_alone(encoder):
    before = encoder.stats.micro_batches
    mixed = encoder.encode(TEXTS, task=EACH)
    assert encoder.stats.micro_batches == before + 1
    for i, task in enumerate(EACH):
        tokens = encoder.tokenizer.tokenize([TEXTS[i]], [task]).ids
        np.testing.assert_allclose(mixed[i], encoder.encode_tokens(tokens, [task])[0], atol=1e-5, rtol=0)


@examples(25)
@given(st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(TASKS)), min_size=1, max_size=12))
def test_order_and_other_rows_change_no_vector(main, rows):
    texts, tasks = zip(*rows, strict=True)
    together = main.encode(texts, task=tasks)
    for text, task, vector in zip(texts, tasks, together, strict=True):
        np.testing.assert_allclose(main.encode([text], task=[task])[0], vector, atol=1e-5, rtol=0)


@examples(40)
@given(st.text(), st.sampled_from(TASKS))
def test_any_text_has_a_finite_unit_vector(main, text, task):
    (vector,) = main.encode([text], task=[task])
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_no_token_attends_to_later_tokens(main):
    ids = main.tokenizer.tokenize([TEXTS[0], TEXTS[0] + TEXTS[1]]).ids
    short, long = main.encode_token_states(ids)
    same = len(short) - 1  # the last token may be merged with the text that follows
    assert ids[0].as_py()[:same] == ids[1].as_py()[:same]
    np.testing.assert_allclose(short[:same], long[:same], atol=1e-5)


def test_a_row_longer_than_any_before_has_correct_positions(folders, oracle):
    encoder = load(folders["old"], task="text-matching")
    rows = encoder.tokenizer.tokenize(["short", " ".join(SENTENCES * 5)]).ids.to_pylist()
    assert len(rows[1]) > 512
    actual = encoder.encode(["short", " ".join(SENTENCES * 5)])
    np.testing.assert_allclose(actual, oracle.vectors(rows, ["text-matching"] * 2), atol=1e-5, rtol=0)


def test_bfloat16_vectors_are_close(main):
    narrow = Encoder(main.spec, compute=Compute(torch.device("cpu"), torch.bfloat16))
    cosines = (narrow.encode(TEXTS, task=EACH) * main.encode(TEXTS, task=EACH)).sum(1)
    assert cosines.min() > 0.999
    assert cosines.max() < 0.9999999  # the compute type did change


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 1), (8, 2)])
def test_heads_are_shared_as_configured(tmp_path, heads, groups):
    folder = write_jina_v4(tmp_path / "model", heads=heads, groups=groups, hidden=64, merged="code")
    encoder = load(folder, task="query")
    rows = encoder.tokenizer.tokenize(TEXTS).ids.to_pylist()
    np.testing.assert_allclose(encoder.encode(TEXTS), Oracle(folder).vectors(rows, [None] * len(TEXTS)), atol=1e-5)


# Tasks and prompts


def test_only_the_tasks_prompt_is_added_to_a_text(folders):
    for name in LAYOUTS:
        spec = describe(str(folders[name]), task="code.query")
        assert (spec.tasks, spec.prompts) == (TASKS, PROMPTS)
        tokenizer = Tokenizer(spec)
        for task in TASKS:
            with_task = tokenizer.tokenize(["a text"], [task]).ids
            assert with_task == tokenizer.tokenize([PROMPTS[task] + "a text"], [None]).ids
        assert tokenizer.tokenize(["", "Q"], [None, None]).ids.to_pylist()[0] == []


def test_query_side_of_each_task(folders):
    spec = describe(str(folders["old"]), task="retrieval.passage")
    for task, asked in zip(TASKS, ("retrieval.query", "retrieval.query", "text-matching", "code.query", "code.query"), strict=True):  # fmt: skip
        query = spec.with_task(task).query_side()
        assert (query.task, query.prompt) == (asked, "Query: ")


def test_a_merged_checkpoint_has_the_two_prompts_as_tasks(tmp_path):
    spec = describe(str(write_jina_v4(tmp_path, merged="retrieval")), task="passage")
    assert (spec.prompts, spec.query_side().task) == ({"query": "Query: ", "passage": "Passage: "}, "query")
    encoder = load_encoder(spec)
    texts = ["one", "two", "three"]
    mixed = encoder.encode(texts, task=["query", "passage", None])
    for text, task, vector in zip(texts, ("query", "passage", None), mixed, strict=True):
        np.testing.assert_allclose(encoder.encode([text], task=[task])[0], vector, atol=1e-5)


def test_a_task_is_required(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"needs a task, .* one of retrieval\.query, .*, code\.passage\. Set `task`"):
        describe(str(folders["old"]))
    with pytest.raises(ConfigError, match="needs a task, .* one of query, passage"):
        describe(str(write_jina_v4(tmp_path, merged="code")))


def test_an_unknown_task_is_refused(main):
    with pytest.raises(ConfigError, match=r"no task 'retrieval': its tasks are retrieval\.query"):
        main.encode(["x"], task="retrieval")


def test_an_empty_text_without_a_prompt_is_refused(main):
    with pytest.raises(DataError, match="has no token ids"):
        main.encode([""], task=[None])


def test_other_task_names_in_the_config_are_used(folders, tmp_path):
    """As in the publisher's code, every task but text-matching has two prompts."""
    copy = edit(folders["old"], tmp_path / "copy", task_names=["code", "retrieval", "text-matching"])
    assert describe(str(copy), task="code.query").tasks == (*TASKS[3:], *TASKS[:2], TASKS[2])


def test_the_token_limit_is_the_publishers(folders, tmp_path):
    assert describe(str(folders["old"]), task="code.query").max_tokens == 1200
    copy = edit(folders["old"], tmp_path / "copy", text={"max_position_embeddings": 128_000})
    assert describe(str(copy), task="code.query").max_tokens == 32_768


# Matryoshka


def test_vectors_of_trained_dims_are_sliced_before_normalising(folders, main):
    full = main.encode(TEXTS)
    for dim in (8, 16, 32):
        short = load(folders["old"], dim=dim).encode(TEXTS)
        expected = full[:, :dim] / np.linalg.norm(full[:, :dim], axis=1, keepdims=True)
        np.testing.assert_allclose(short, expected, atol=1e-6, rtol=0)


def test_untrained_dims_are_refused_and_dims_above_the_width_ignored(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"was trained for dims 8, 16, 32\."):
        describe(str(folders["old"]), task="code.query", dim=24)
    wide = write_jina_v4(tmp_path, merged="code", hidden=512)  # its config has no dims
    with pytest.raises(ConfigError, match=r"was trained for dims 128, 256, 512\."):
        describe(str(wide), task="query", dim=300)


# Rotary base


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        {"rope_theta": 500.0},
        {"rope_theta": None, "rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_theta": 500.0, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
    ],
)
def test_the_rotary_base_is_read_from_the_config(folders, tmp_path, main, text):
    copy = edit(folders["old"], tmp_path / "copy", text=text, task_names=[])
    encoder = load(copy, task="passage")
    rows = encoder.tokenizer.tokenize(TEXTS).ids.to_pylist()
    vectors = encoder.encode(TEXTS)
    published = main.encode_tokens(encoder.tokenizer.tokenize(TEXTS).ids, [None] * len(TEXTS))
    assert np.abs(vectors - published).max() > 1e-3
    # transformers reads the same keys, but requires the sections of all three axes.
    config = json.loads((copy / "config.json").read_text())
    parameters = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 2]}
    config["text_config"] |= {"rope_parameters": parameters}
    (copy / "config.json").write_text(json.dumps(config))
    np.testing.assert_allclose(vectors, Oracle(copy).vectors(rows, [None] * len(TEXTS)), atol=1e-5)


# Lineage


def test_the_adapters_content_changes_the_lineage(folders, tmp_path):
    before = describe(str(folders["old"]), task="code.query")
    copy = tmp_path / "copy"
    shutil.copytree(folders["old"], copy)
    assert describe(str(copy), task="code.query").lineage() == before.lineage()
    weights = copy / "adapters" / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    assert describe(str(copy), task="code.query").lineage() != before.lineage()
    shutil.rmtree(copy)
    shutil.copytree(folders["old"], copy)
    config = copy / "adapters" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 4}))
    assert describe(str(copy), task="code.query").lineage() != before.lineage()
    assert replace(before, task="code.passage").lineage() != before.lineage()


def test_a_pickled_spec_loads_the_same_model(folders, main):
    spec = pickle.loads(pickle.dumps(describe(str(folders["new"]), dtype="float32", task="code.passage")))
    np.testing.assert_allclose(load_encoder(spec).encode(TEXTS), main.encode(TEXTS, task="code.passage"), atol=1e-5)


@pytest.mark.slow
def test_describing_it_imports_no_torch(folders):
    code = (
        "import sys; from actors.encoders import describe; from actors.text.tokenizer import Tokenizer\n"
        f"Tokenizer(describe({str(folders['old'])!r}, task='code.query')).tokenize(['a'])\n"
        "print(*{'torch', 'transformers', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_a_truncated_text_keeps_its_prompt_and_first_tokens(folders):
    spec = describe(str(folders["old"]), task="retrieval.passage", max_tokens=64)
    long = "  ".join(SENTENCES * 10)
    whole = Tokenizer(replace(spec, max_tokens=100_000)).tokenize([long]).ids[0].as_py()
    cut = Tokenizer(spec).tokenize([long])
    assert cut.ids[0].as_py() == whole[:64]
    assert cut.truncated.tolist() == [True]
