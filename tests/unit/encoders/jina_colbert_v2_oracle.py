"""Reference for jina-colbert-v2: the encoder of sentence-transformers that MTEB uses, on transformers' own class of v3."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from tests.checkpoints.jina_colbert_v2 import ADDED


def reference(folder: Path, copy: Path) -> Any:
    """Returns a `MultiVectorEncoder` with MTEB's settings for the model; `copy` is a folder to write to."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Normalize
    from torch import nn
    from transformers import JinaEmbeddingsV3Model

    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    del config["auto_map"]
    rope = {"rope_theta": 10_000.0, "rope_type": "default"}
    settings = {"architectures": ["JinaEmbeddingsV3Model"], "model_type": "jina_embeddings_v3", "rope_parameters": rope}
    (copy / "config.json").write_text(json.dumps(config | settings))
    loaded: Any = JinaEmbeddingsV3Model.from_pretrained(copy, output_loading_info=True)
    assert (loaded[1]["missing_keys"], loaded[1]["unexpected_keys"]) == (set(), {"linear.weight"})
    special = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": ADDED[0],
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(copy / "tokenizer.json"), model_max_length=600, **special)
    tokenizer.save_pretrained(copy)
    expansion: Any = {"strategy": "fixed", "attend": True, "length": 32}
    transformer = Transformer(str(copy), model_kwargs={"dtype": "float32"}, query_expansion=expansion)
    weight = load_file(copy / "model.safetensors")["linear.weight"].float()
    projection = Dense(
        weight.shape[1],
        weight.shape[0],
        bias=False,
        activation_function=nn.Identity(),
        init_weight=weight,
        module_input_name="token_embeddings",
    )
    return MultiVectorEncoder(
        modules=[
            transformer,
            projection,
            MultiVectorMask(skiplist_words=list(string.punctuation)),
            Normalize(module_input_name="token_embeddings"),
        ],
        prompts={"query": "[QueryMarker]", "document": "[DocumentMarker]"},
        device="cpu",
    )
