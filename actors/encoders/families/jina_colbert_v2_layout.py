"""Layout of jina-colbert-v2 checkpoints: the encoder of v3 without adapters, and a projection of each token. Torch-free.

`model_type` is "xlm-roberta", so the tensors decide. The repositories `-96` and `-64` differ in the width of the projection.
The tokens that the model needs besides words are found by their names in the tokenizer: in the published one, the
markers are 250002 and 250003, and `<mask>` is 250001.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import punctuation

from actors.encoders.families import jina_v3_layout
from actors.encoders.layout import Config, FamilyFacts, Markers, Tensors, config_int
from actors.errors import ModelError

QUERY, PASSAGE = "query", "passage"
PROJECTION = "linear.weight"
# Widths that the model was trained for.
DIMS = (64, 96, 128)
_PREFIX = "roberta."
_QUERY_TOKENS = 32
_IDLE = (r"roberta\.pooler\.dense\..*", r"roberta\.embeddings\.(position_ids|token_type_ids)")


def layout(config: Config, tensors: Tensors) -> FamilyFacts | None:
    """Returns the facts of a jina-colbert-v2 checkpoint, or None if it is not one.

    Raises:
        ModelError: It is one, with a setting that is not supported.
    """
    if PROJECTION not in tensors or f"{_PREFIX}encoder.layers.0.mixer.Wqkv.weight" not in tensors:
        return None
    hidden = jina_v3_layout.check_config(config, "jina_colbert_v2")
    width = tensors[PROJECTION].shape[0]
    needed = {f"{_PREFIX}{name}": shape for name, shape in jina_v3_layout.needed(config, "fused", 0)}
    return FamilyFacts(
        family="jina_colbert_v2",
        variant="fused",
        hidden=hidden,
        vocab_size=config_int(config, "vocab_size"),
        max_tokens=config_int(config, "max_position_embeddings") - jina_v3_layout.RESERVED_POSITIONS,
        needed={**needed, PROJECTION: (width, hidden)},
        ignorable=_IDLE,
        prefix=_PREFIX,
        tasks=(QUERY, PASSAGE),
        default_task=PASSAGE,
        query_of={PASSAGE: QUERY},
        dims=tuple(dim for dim in DIMS if dim <= width),
        multi_dim=width,
        markers=markers,
        encoded=True,
    )


def markers(ids: Mapping[str, int]) -> Markers:
    """Returns the tokens that tell queries and texts apart.

    Queries attend to the tokens that fill them up, as with MTEB's settings for this model. Punctuation has no vector in
    texts, as in ColBERT, PyLate and sentence-transformers.

    Args:
        ids: Ids of the tokenizer's tokens.

    Raises:
        ModelError: The tokenizer has no such tokens.
    """
    names = ("[QueryMarker]", "[DocumentMarker]", "<mask>")
    if absent := [name for name in names if name not in ids]:
        raise ModelError(
            f"tokenizer.json has no token {absent[0]!r}, with which jina-colbert-v2 was trained. Fetch the checkpoint again."
        )
    query, document, mask = (ids[name] for name in names)
    skipped = tuple(ids[mark] for mark in punctuation if mark in ids)
    return Markers({QUERY: query, PASSAGE: document}, QUERY, _QUERY_TOKENS, mask, skipped)
