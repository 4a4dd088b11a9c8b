"""The step language: verdicts of texts, of translations, and its refusals."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import fasttext
import pyarrow as pa
import pytest

from actors.errors import ConfigError, ModelError
from pipeline.curate import fasttext_model
from pipeline.curate.steps.base import Seen
from pipeline.curate.steps.language import Language
from pipeline.execute.progress import NullReporter
from pipeline.job.curation import Language as Settings
from pipeline.job.curation import parse_curation

ENGLISH = "The quick brown fox jumps over the lazy dog, and then it sleeps."
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund und schläft dann."
FRENCH = "Le renard brun et rapide saute par-dessus le chien paresseux, puis il dort."
ITALIAN = "Il veloce scoiattolo salta sopra il cane pigro e poi va a dormire"
BRIEF = "Risk of data when lost"
MIXED = "Run the program: Programm ausführen"
SHORT = "Gute Nacht"
MARKED = "\u202eevil\u202c text right to left"  # Chinese, says the model where it sees the marks
CODE = "asyncio.get_event_loop() ArgumentParser.format_help()"  # Spanish, says the model
CLOSE = "Lista de área de arquivo Debian"  # Portuguese; the model takes it for Spanish


def decide(rows: Sequence[tuple[str | None, ...]], **settings):
    """The rows of the decision, without n, and the evidence."""
    sides = ("query", "passage") if len(rows[0]) == 2 else ("text",)
    step = Language(Settings(**settings), sides)
    step.check()
    arrays = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    raw = step.measure(arrays)
    assert raw.schema == step.raw()
    connection = duckdb.connect(config={"threads": 1})
    table = pa.table([range(len(rows)), *arrays, *raw.columns], ["n", *sides, *raw.schema.names])
    connection.register("given", table)
    connection.execute("create table seen as select * from given")
    decision = step.decide(Seen(connection, "seen", sides, NullReporter(), "unused"))
    found = connection.sql(f"select * from {decision.table} order by n").to_arrow_table()
    assert found.column_names == ["n", *step.schema().names, "dropped"]
    assert found.schema.field(2).type == pa.float32()
    return found.drop_columns(["n"]).to_pylist(), decision.evidence


def test_only_a_text_surely_in_another_language_is_dropped():
    texts = [ENGLISH, GERMAN, GERMAN.replace(" ", "\n"), "</s> " + GERMAN, SHORT, CODE, None, MIXED, MARKED]
    rows, evidence = decide([(text,) for text in texts], allow=["en"])
    found = [row["language_verdict"] for row in rows]
    assert found == ["ok", "other", "other", "other", "too_short", "too_short", "too_short", "uncertain", "ok"]
    assert [row["dropped"] for row in rows] == [verdict == "other" for verdict in found]
    assert (rows[1]["language"], rows[6]["language"]) == ("de", None)
    assert rows[1]["language_confidence"] > 0.9
    assert evidence["language"]["languages"]["de"] == {"other": 3, "too_short": 1, "uncertain": 1}
    assert {verdict: sum(bins) for verdict, bins in evidence["language"]["confidence"].items()} == {
        verdict: found.count(verdict) for verdict in set(found)
    }


def test_a_close_language_is_no_other_language():
    (row, _), _ = decide([(CLOSE,), (ENGLISH,)], allow=["pt", "en"])
    model = fasttext.load_model(str(fasttext_model.packaged()))
    assert model.predict(CLOSE.lower())[0] == ("__label__es",)
    assert (row["language"], row["language_verdict"]) == ("es", "uncertain")


def test_a_translation_has_a_pair_of_the_languages_in_either_order():
    kept = [
        (ENGLISH, GERMAN),
        (GERMAN, ENGLISH),
        (ENGLISH, FRENCH),
        (ENGLISH, SHORT),
        (SHORT, ENGLISH),
        (SHORT, GERMAN),
    ]
    kept.append((CODE, CODE))
    dropped = [
        (GERMAN, FRENCH),  # both are languages of the job, and no pair of it
        (ENGLISH, ENGLISH),
        (GERMAN, GERMAN),
        (ITALIAN, GERMAN),
        (BRIEF, BRIEF),  # not sure among 176 languages, and among two
    ]
    rows, _ = decide([*kept, *dropped], allow=[["en", "de"], ["fr", "en"]])
    assert [row["dropped"] for row in rows] == [False] * len(kept) + [True] * len(dropped)


def test_one_side_alone_has_columns_and_a_verdict():
    rows, _ = decide([(ENGLISH, GERMAN), (GERMAN, ENGLISH)], allow=["en"], side="passage")
    assert [row["dropped"] for row in rows] == [True, False]
    assert list(rows[0]) == ["passage_language", "passage_language_confidence", "passage_language_verdict", "dropped"]


def test_predictions_are_those_of_the_library_on_lower_case():
    texts = [ENGLISH, GERMAN, FRENCH, CODE, SHORT, "", "漢字かな交じり文", "Σίσυφος ἔφη", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 🙂", "x" * 5000]
    languages, probabilities = fasttext_model.predict_languages(fasttext_model.packaged(), pa.array(texts))
    model = fasttext.load_model(str(fasttext_model.packaged()))
    for text, labels, shares in zip(texts, languages.to_pylist(), probabilities.to_pylist(), strict=True):
        expected = model.predict(text.lower().replace("\n", " "), 5, 0.01)
        assert (tuple(f"__label__{label}" for label in labels), shares) == (
            expected[0],
            pytest.approx(expected[1], abs=1e-6),
        )


def test_a_view_drops_what_a_run_with_its_confidence_drops():
    texts = [
        ENGLISH,
        GERMAN,
        CLOSE,
        MIXED,
        CODE,
        SHORT,
        "Metacharacters: | ; & ( ) and so on",
    ]
    pairs = [(one, other) for one in texts for other in texts]
    allow = [["en", "pt"], ["en", "de"]]
    loose, strict = ({"allow": allow, "min_confidence": least} for least in (0.9, 0.2))
    step = Language(Settings(**strict), ("query", "passage"))
    condition = step.view(Settings(**loose).model_dump(mode="json"))
    table = pa.Table.from_pylist(decide(pairs, **loose)[0])
    connection = duckdb.connect()
    connection.register("viewed", table)
    viewed = connection.execute(f"select coalesce({condition}, false) from viewed").fetchall()
    expected = [row["dropped"] for row in decide(pairs, **strict)[0]]
    assert [dropped for (dropped,) in viewed] == expected
    assert sum(expected) > sum(table["dropped"].to_pylist())


@pytest.mark.parametrize("changed", [{"min_confidence": 0.6}, {"allow": ["de"]}, {"min_characters": 10}])
def test_a_view_with_looser_or_other_settings_is_refused(changed):
    before = Settings(allow=["en"]).model_dump(mode="json")
    with pytest.raises(ConfigError, match="a view can have a smaller min_confidence and nothing else"):
        Language(Settings(**{"allow": ["en"], **changed}), ("text",)).view(before)


def test_texts_of_which_none_is_in_an_allowed_language_are_refused_with_counts():
    with pytest.raises(ConfigError, match=r"none of the 3 rows is in these languages: language has de 2, fr 1\. Allow"):
        decide([(GERMAN,), (FRENCH,), (SHORT,)], allow=["en"])


def test_a_side_of_documents_is_refused():
    job = {
        "corpus": {"uri": "a.jsonl"},
        "steps": [{"language": {"allow": ["en"], "side": "query"}}],
        "table": {"uri": "b"},
    }
    with pytest.raises(ConfigError, match="steps.language.side is query, and a document has no sides: leave side out"):
        parse_curation(job)


def test_a_step_that_drops_nothing_says_so():
    assert "drops nothing" in decide([(ENGLISH,)], allow=["en"])[1]["note"]


def test_a_language_that_the_model_does_not_know_is_refused():
    with pytest.raises(
        ConfigError, match="allow names 'ger', which '.*lid.176.ftz' does not know; write a language as"
    ):
        Language(Settings(allow=[["en", "ger"]]), ("query", "passage")).check()


@pytest.mark.parametrize("content", [None, b"", b"no model", b"\xba\x16\x4f\x2f" + b"\0" * 100])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "model.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read|is no fastText model that identifies languages"):
        Language(Settings(allow=["en"], model=str(path)), ("text",)).check()


def test_labels_with_a_script_are_understood(tmp_path):
    """Labels such as those of GlotLID and OpenLID, in the packaged model."""
    path = tmp_path / "model.ftz"
    packaged = fasttext_model.packaged().read_bytes()
    path.write_bytes(
        packaged.replace(b"__label__en\0", b"__label__eng_Latn\0").replace(b"__label__de\0", b"__label__deu_'Latn\0")
    )
    for code in ("eng", "eng_Latn"):
        rows, _ = decide([(ENGLISH,), (GERMAN,)], allow=[code], model=str(path))
        assert [row["language"] for row in rows] == ["eng_Latn", "deu_'Latn"]
        assert [row["language_verdict"] for row in rows] == ["ok", "other"]
    with pytest.raises(ConfigError, match="allow names 'en'"):
        Language(Settings(allow=["en"], model=str(path)), ("text",)).check()
