"""A cross-encoder that checks each negative: v1 keeps r(q, p) - r(q, n) > 0.2.

sentence-transformers loads and runs it. The texts of the rows are those that the table stores (`table.keep_text`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import ConfigError
from actors.schema import ID, KEPT_TEXT
from pipeline.scan.table_scan import TableScan

# Returns how relevant each passage is to its query, for pairs of texts.
Score = Callable[[Sequence[tuple[str, str]]], npt.NDArray[np.float32]]


def load_cross_encoder(name: str) -> Score:
    """Load a cross-encoder with one score.

    Args:
        name: A hub id or a folder. No code of the repository is run.

    Raises:
        ConfigError: the package is missing, or the model is not there or has several scores.
    """
    if find_spec("sentence_transformers") is None:
        raise ConfigError("--cross-encoder needs sentence-transformers; install it with: pip install 'vectide[mine]'")
    from sentence_transformers import CrossEncoder

    try:
        model = CrossEncoder(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--cross-encoder {name!r} cannot be loaded: {reason}") from None
    if model.num_labels != 1:
        raise ConfigError(f"--cross-encoder {name!r} has {model.num_labels} scores; take a model with one")

    def score(pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        return np.asarray(model.predict(list(pairs), show_progress_bar=False), np.float32)

    return score


def need_texts(scan: TableScan, url: str) -> None:
    """Raise ConfigError if a table does not store the texts of its rows."""
    if KEPT_TEXT not in scan.schema.names or not pa.types.is_string(scan.schema.field(KEPT_TEXT).type):
        raise ConfigError(
            f"--cross-encoder reads texts, and {url!r} has no column {KEPT_TEXT!r}; back-fill it with table.keep_text: true"
        )


def texts_of(scan: TableScan, ids: Sequence[str]) -> dict[str, str]:
    """Return the texts of some rows by their ids, in one pass over the table; of a document's chunks the first."""
    wanted = pa.array(ids, pa.string())
    texts: dict[str, str] = {}
    for part in scan.columns([ID, KEPT_TEXT]):
        rows = part.filter(pc.is_in(part[ID], value_set=wanted))
        for name, text in zip(rows[ID].to_pylist(), rows[KEPT_TEXT].to_pylist(), strict=True):
            texts.setdefault(name, text or "")
    return texts
