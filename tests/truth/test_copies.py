"""Exact copies among paragraphs of manuals: all of them are found, and nothing else."""

from __future__ import annotations

import random
from unicodedata import normalize

import pytest

from pipeline.curate.run import curate
from tests.truth import debian
from tests.unit.curate.jobs import Pair, job_of, rows_of, write_pairs

pytestmark = pytest.mark.skipif(not debian.IS_THERE, reason=debian.WHY_SKIPPED)

ROWS = 4_000
# Ways to write the same text.
VARIANTS = (
    str.upper,
    lambda text: f"\t{text}  ",
    lambda text: text.replace(" ", "\n\u3000"),
    lambda text: text[:3] + "\u200b\ufeff" + text[3:],
    lambda text: text.translate({ord("a"): "\uff41", ord("1"): "\u00b9"}),
)


def test_exact_copies_are_found_with_recall_and_precision_of_1(tmp_path):
    rng = random.Random(0)
    translated = [(each.english, each.other) for each in debian.aligned() if each.is_translated]
    unique = {normalize("NFKC", f"{one}\n{other}").lower(): (one, other) for one, other in translated}
    originals = dict(enumerate(rng.sample(list(unique.values()), ROWS)))
    rows: list[Pair] = [(f"{at:06}", *pair) for at, pair in originals.items()]
    truth = {f"copy-{at:06}": f"{at:06}" for at in rng.sample(range(ROWS), ROWS // 10)}
    for key, original in truth.items():
        one, other = (rng.choice(VARIANTS)(text) for text in originals[int(original)])
        rows.append((key, one, other))
    rng.shuffle(rows)
    write_pairs(tmp_path / "pairs" / "pairs.parquet", rows)
    curate(job_of(tmp_path, ["dedup"]))
    assert {key: row["duplicate_of"] for key, row in rows_of(tmp_path).items() if not row["kept"]} == truth
