"""Translations found among the texts of another language, with a model that knows what each text is about."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.errors import ConfigError, DataError
from pipeline.evaluate.parallel import evaluate_parallel
from pipeline.evaluate.texts import Subject

if TYPE_CHECKING:
    from actors.encoders.encoder import Encoder

TOPICS = {
    "cat": 0,
    "Katze": 0,
    "chat": 0,
    "dog": 1,
    "Hund": 1,
    "Köter": 1,
    "chien": 1,
    "tree": 2,
    "Baum": 2,
    "house": 3,
    "Haus": 4,
    "TV": 5,
}


def subject():
    """Return a model whose vectors of one topic are equal."""
    spec = SimpleNamespace(dim=6, outputs=[SimpleNamespace(single=True)], tasks=(), task=None, query_of={})
    encoder = SimpleNamespace(
        spec=spec, encode=lambda texts, _: np.eye(6, dtype=np.float32)[[TOPICS[text] for text in texts]]
    )
    return Subject("model", cast("Encoder", encoder))


def evaluated(folder, **columns):
    pq.write_table(pa.table(columns), folder / "f.parquet")
    return evaluate_parallel(str(folder / "f.parquet"), [subject()])


def cells(result, measure):
    return next(each.cells for each in result.matrices if (each.label, each.measure) == ("model", measure))


def test_each_language_is_searched_from_each_other(tmp_path):
    english = ["cat", "dog", "dog", "tree", "house", "TV", None]
    german = ["Katze", "Hund", "Köter", "Baum", "Haus", "TV", "Baum"]
    found = evaluated(
        tmp_path, id=[*range(7)], en=english, de=german, fr=["chat", "chien", " ", None, "", None, None], n=[1] * 7
    )
    # From German all but the house is found. "dog" has two right answers, which is no tie; the topics of house and Haus differ.
    assert cells(found, "accuracy@1")[0] == (None, pytest.approx(4 / 5), 1.0)
    assert cells(found, "accuracy@1")[1] == (pytest.approx(4 / 5), None, 1.0)
    assert cells(found, "nDCG@10")[0][1] == pytest.approx((4 + 1 / np.log2(6)) / 5)  # the 5th and last of the answers
    assert list(found.items) == ["0", "1", "2", "3", "4"]
    assert found.measured[0].values["accuracy@1"].tolist() == [1, 1, 1, 1, 0]
    assert found.measured[1].values["accuracy@1"].max() == 0  # no word in common
    assert found.notes == (
        "columns that hold no texts are left out: n",
        "1 of 7 rows have no text in en and are left out of its pairs",
        "5 of 7 rows have no text in fr and are left out of its pairs",
        "1 pairs of equal texts are left out, since they are not translated",
    )


def test_equal_scores_of_another_answer_fail(tmp_path):
    found = evaluated(tmp_path, en=["cat", "dog"], de=["Hund", "Köter"])
    assert cells(found, "accuracy@1") == ((None, 0.0), (0.5, None))  # both German words are about dogs


def test_a_language_that_is_there_twice_is_named(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array(["cat"]), pa.array([1])], ["en", "en"]), tmp_path / "f.parquet")
    with pytest.raises(ConfigError, match=r"has the columns of texts \['en'\]; it needs two or more"):
        evaluate_parallel(str(tmp_path / "f.parquet"), [subject()])


@pytest.mark.parametrize(
    ("columns", "error", "says"),
    [
        ({"en": ["cat"]}, ConfigError, r"has the columns of texts \['en'\]; it needs two or more"),
        (
            {"en": ["cat", None], "de": ["Katze", "Hund"]},
            DataError,
            "no two languages with two or more different texts",
        ),
        ({"en": ["cat"] * 2, "de": ["Katze"] * 2}, DataError, "no two languages with two or more different texts"),
        ({"en": [], "de": []}, DataError, "has no rows; write at least one$"),
    ],
)
def test_files_without_translations_are_named(tmp_path, columns, error, says):
    with pytest.raises(error, match=says):
        evaluated(tmp_path, **columns)
