"""One model in float32, bfloat16 and int8, and its vectors in each stored type: retrieval, similarity and negation.

Retrieval: the documentation of functions finds them (`vectide evaluate --code`), and a judged collection if one is named.
Similarity: the human ratings in gensim's wheel, of pairs of newspaper articles (Lee, 2005) and of words (WordSim-353,
SimLex-999). Negation: `vectide negation` by rules, on WordNet's example sentences. All texts are encoded in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from actors.encoders import load_encoder
from actors.encoders.settings import EncoderSettings
from actors.vectors import Floats
from benchmarks.negation import write_pairs
from benchmarks.race.machine import commit, hardware, versions
from pipeline.curate.negation.build import Settings, build_negations
from pipeline.evaluate.code import judged_code
from pipeline.evaluate.ladder import PRECISIONS, Rung
from pipeline.evaluate.result import Evaluated, Evaluation, Measured
from pipeline.quality.bootstrap import Values
from pipeline.quality.judged import Judged, judged
from pipeline.quality.metrics import MAIN, retrieval_values

DTYPES = ("float32", "bfloat16", "int8")
_FOUND = 100  # documents of a query
_TRIPLETS = 1_000


@dataclass(frozen=True)
class Task:
    """A measurement.

    Attributes:
        queries: Texts that are compared as queries of a search are; of pairs and triplets, none.
        documents: Texts that are compared as stored vectors are.
        measure: Returns the values of each item by measure, from both vectors.
        truth: What a measure is correlated with; None: its score is the mean.
    """

    name: str
    what: str
    queries: Sequence[str]
    documents: Sequence[str]
    items: int
    measure: Callable[[Floats, Floats], dict[str, Values]]
    truth: Values | None = None


def retrieval(name: str, what: str, asked: Judged, ids: Sequence[str], texts: Sequence[str]) -> Task:
    """Return a task of finding the judged documents of queries."""

    def measure(queries: Floats, documents: Floats) -> dict[str, Values]:
        scores = queries @ documents.T
        found = {}
        for query, row in zip(asked.judgements, scores, strict=True):
            best = np.argsort(-row, kind="stable")[:_FOUND]
            found[query] = {ids[number]: float(row[number]) for number in best}
        return {MAIN: retrieval_values(asked.judgements, found)[MAIN]}

    shown = f"{what}: {len(asked.queries):,} queries, {len(texts):,} documents"
    return Task(name, shown, [*asked.queries.values()], texts, len(asked.queries), measure)


def similarity(name: str, what: str, pairs: Sequence[tuple[str, str]], ratings: Sequence[float]) -> Task:
    """Return a task of agreeing with the ratings of people."""
    places = {text: number for number, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
    first, second = (np.array([places[pair[side]] for pair in pairs]) for side in (0, 1))

    def measure(_: Floats, documents: Floats) -> dict[str, Values]:
        return {"Spearman": _dots(documents[first], documents[second])}

    truth = np.array(ratings, np.float64)
    return Task(name, f"{what}: {len(pairs):,} pairs", (), [*places], len(pairs), measure, truth)


def negation(rows: pa.Table) -> Task:
    """Return a task of telling a negation from what follows."""
    parts = [rows[name].to_pylist() for name in ("anchor", "entailment", "negative")]

    def measure(_: Floats, documents: Floats) -> dict[str, Values]:
        anchor, entailment, negative = np.split(documents, 3)
        follows = _dots(anchor, entailment)
        return {
            "HardNegation": (follows > _dots(entailment, negative)).astype(np.float64),
            "EasyNegation": (follows > _dots(anchor, negative)).astype(np.float64),
        }

    what = f"{rows.num_rows:,} triplets of `vectide negation --by rules` on WordNet's example sentences"
    return Task("negation", what, (), [text for part in parts for text in part], rows.num_rows, measure)


def tasks(code: Path, wordnet: Path, collection: Path | None, work: Path) -> list[Task]:
    """Return all measurements.

    Args:
        code: Folder of documented source code.
        wordnet: Folder of WordNet's files.
        collection: Folder with `docs.parquet` (`id`, `title`, `text`), `queries.parquet` and `qrels.parquet`.
        work: Folder for the triplets.
    """
    asked, documents = judged_code(str(code))
    found = [
        retrieval(
            "code", f"functions of {code.name}", asked, documents["id"].to_pylist(), documents["text"].to_pylist()
        )
    ]
    if collection is not None:
        docs, queries, qrels = (pq.read_table(collection / f"{name}.parquet") for name in ("docs", "queries", "qrels"))
        texts = [
            f"{title}\n\n{text}".strip()
            for title, text in zip(docs["title"].to_pylist(), docs["text"].to_pylist(), strict=True)
        ]
        name = collection.name
        found.append(retrieval(name, name, judged(queries, qrels, names=(name, name)), docs["id"].to_pylist(), texts))
    data = _gensim()
    articles = data.joinpath("lee.cor").read_text("latin-1").splitlines()
    ratings = np.loadtxt(data / "similarities0-1.txt")
    pairs = [*combinations(range(len(articles)), 2)]
    found.append(
        similarity(
            "articles",
            "Lee's articles",
            [(articles[a], articles[b]) for a, b in pairs],
            [ratings[a, b] for a, b in pairs],
        )
    )
    for name, file in (("WordSim-353", "wordsim353.tsv"), ("SimLex-999", "simlex999.txt")):
        lines = [line.split("\t") for line in data.joinpath(file).read_text().splitlines() if not line.startswith("#")]
        found.append(similarity(name, name, [(line[0], line[1]) for line in lines], [float(line[2]) for line in lines]))
    made = build_negations(
        write_pairs(wordnet, work), str(work / "negations.parquet"), Settings(ways=("rules",), wordnet=str(wordnet))
    )
    triplets = pq.read_table(made.out)
    return [*found, negation(triplets.take(pa.array(range(0, triplets.num_rows, -(-triplets.num_rows // _TRIPLETS)))))]


def _gensim() -> Path:
    found = find_spec("gensim")
    if found is None or found.origin is None:
        raise SystemExit("the ratings come with the package gensim: pip install 'vectide[bench]'")
    return Path(found.origin).parent / "test" / "test_data"


def _dots(first: Floats, second: Floats) -> Values:
    dots: Values = np.einsum("ij,ij->i", first, second, dtype=np.float64)
    return dots


def measure(model: Path, todo: Sequence[Task], print_progress: Callable[[str], None]) -> list[tuple[Task, Evaluation]]:
    """Return the scores of each task, a row for each type that is computed in or stored, float32 first."""
    measured: dict[str, list[Measured]] = {task.name: [] for task in todo}
    for dtype in DTYPES:
        encoder = load_encoder(EncoderSettings(model=str(model), dtype=dtype))
        # Without the instructions for bfloat16, float32 is computed.
        is_other = dtype == "bfloat16" and encoder.compute.dtype != torch.bfloat16
        shown = f"{dtype} (float32 on this processor)" if is_other else dtype
        for task in todo:
            print_progress(f"{dtype}: {task.what}")
            queries = encoder.encode(list(task.queries)) if task.queries else np.zeros((0, encoder.dim), np.float32)
            documents = encoder.encode(list(task.documents))
            for precision in PRECISIONS if dtype == "float32" else ("float32",):
                rung = Rung(encoder.dim, precision)
                values = task.measure(rung.queries(queries), rung.stored(documents))
                label = f"{shown} | {precision}"
                measured[task.name].append(
                    Measured(label, values, bytes_per_vector=rung.bytes_per_vector, truth=task.truth)
                )
    return [
        (
            task,
            Evaluated(
                task.name, model.name, "", [str(item) for item in range(task.items)], measured[task.name]
            ).result(),
        )
        for task in todo
    ]


def markdown(found: Sequence[tuple[Task, Evaluation]], *, command: str, date: str) -> str:
    """Return the page of a measurement."""
    columns = [(task, evaluation, name) for task, evaluation in found for name in evaluation.rows[0].scores]
    head = ["computed in", "stored as", "bytes", *(f"{task.name}: {name}" for task, _, name in columns)]
    lines = [f"# One model in smaller types ({date})", "", f"    {command}", ""]
    lines += [f"{hardware()}. {versions('torch', 'numpy', 'pyarrow', 'gensim', 'ir-measures')}. Commit {commit()}.", ""]
    lines += ["In brackets: 95 % intervals, by bootstrap.", ""]
    for differences in (False, True):
        if differences:
            lines += ["", "Differences to the first row, on the same items, with their 95 % intervals:", ""]
        lines += [f"| {' | '.join(head)} |", "|---|---|---:" + "|---" * len(columns) + "|"]
        for number, row in enumerate(found[0][1].rows[differences:], int(differences)):
            rows = [(evaluation.rows[number], name) for _, evaluation, name in columns]
            cells = [str((each.differences if differences else each.scores)[name]) for each, name in rows]
            lines.append(f"| {row.label} | {row.bytes_per_vector:,.0f} | {' | '.join(cells)} |")
    lines += ["", "Measured on:", "", *(f"- {task.name}: {task.what}" for task, _ in found), ""]
    lines += [
        "All types of a column are compared on the same texts. Queries keep float32, except for binary, where bits are"
    ]
    lines += ["compared with bits. What the measures mean: [evaluation](../evaluation.md).", ""]
    return "\n".join(lines)
