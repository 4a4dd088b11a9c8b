"""Late interaction: rates of MaxSim, a search with candidates against a dense one, and what candidates and pooling lose.

Run as `python -m benchmarks late`. The vectors of the rates and of the search are random. Those of the ladder are made by a
checkpoint with random weights, so that dense and many vectors belong together: it says how often the same rows are found,
and nothing about the quality of hits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image, ImageDraw

from actors.encoders import load_encoder
from actors.encoders.clusters import cluster
from actors.encoders.settings import EncoderSettings
from actors.schema import EMBEDDING, EMBEDDING_MULTI
from actors.vectors import Floats, VectorColumn, dense
from benchmarks.race.machine import commit, hardware, versions
from benchmarks.search import stored_dense, write_table
from pipeline.scan.maxsim import LateQueries
from pipeline.scan.table_scan import TableScan
from pipeline.scan.vector_cache import VectorCache
from pipeline.table import delta_table

DIM, DENSE_DIM, TOKENS, QUESTION_TOKENS = 128, 2048, 520, 20
K = 10
CANDIDATES = (50, 100, 200, 500)
FACTORS = (2, 3)
_FILE_ROWS = 500
_WORDS = ("net", "interest", "margin", "quarter", "rose", "in", "all", "regions", "while", "costs", "fell", "by")
LISTS = VectorColumn(EMBEDDING_MULTI, "multi", DIM)
BLOBS = LISTS.stored_as("int8", "blob")


@dataclass(frozen=True, slots=True)
class Rung:
    """One way of the ladder.

    Attributes:
        bytes_a_row: Stored bytes of many vectors.
        question_s: Seconds of processor time of MaxSim for one question.
        overlap: Mean share of the 10 best rows of the exact list of float32 vectors.
    """

    name: str
    bytes_a_row: float
    question_s: float
    overlap: float


@dataclass(frozen=True, slots=True)
class Result:
    """Medians.

    Attributes:
        rates: Documents a second of one thread, by way.
        search_s: Seconds of processor time of a warm search of one question, by way.
        ratio: Seconds of a warm late search to those of a dense one, of the same turn.
        table_bytes: Of the table; then without the many vectors.
        cosine: Least cosine of a stored int8 vector to the float32 one, then the mean.
    """

    rows: int
    pages: int
    rates: dict[str, float]
    search_s: dict[str, float]
    ratio: float
    table_bytes: tuple[int, int]
    cosine: tuple[float, float]
    ladder: list[Rung]


def _processor_s(call: Callable[[], object]) -> float:
    """Return the seconds of processor time of a call, of all threads."""
    started = time.process_time()
    call()
    return time.process_time() - started


def _unit(random: np.random.Generator, *shape: int) -> Floats:
    vectors = random.standard_normal(shape, np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors


def _many(vectors: list[Floats]) -> pa.Array:
    """Return many vectors a row as a model makes them."""
    offsets = pa.array(np.cumsum([0, *map(len, vectors)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, dense(np.concatenate(vectors)))


def _stored(many: pa.Array, column: VectorColumn) -> pa.Array:
    """Return many vectors as a table stores them."""
    return column.stored(pa.chunked_array([many]), "float32").combine_chunks()


def rates(repeats: int, *, documents: int = 200) -> dict[str, float]:
    """Return the documents a second of each way on one thread, in turns."""
    from sentence_transformers.util import maxsim

    random = np.random.default_rng(0)
    vectors, question = _unit(random, documents, TOKENS, DIM), _unit(random, 1, QUESTION_TOKENS, DIM)
    stored, queries = _stored(_many(list(vectors)), BLOBS), LateQueries(_many(list(question)), BLOBS)
    theirs, their_question = torch.from_numpy(vectors), torch.from_numpy(question)

    def loop() -> None:
        for document in vectors:
            (question[0] @ document.T).max(axis=1).sum()

    ways: dict[str, Callable[[], object]] = {
        "vectide, int8": lambda: queries.scores(stored),
        "sentence-transformers `maxsim`, float32": lambda: maxsim(their_question, theirs),
        "a product of torch alone, float32": lambda: their_question[0] @ theirs.view(-1, DIM).T,
        "a loop over documents, numpy, float32": loop,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    took: dict[str, list[float]] = {way: [] for way in ways}
    try:
        for _ in range(repeats + 1):
            for way, call in ways.items():
                started = time.thread_time()
                call()
                took[way].append(time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    return {way: documents / median(seconds[1:]) for way, seconds in took.items()}


def write_pages(url: Path, model: Path, rows: int) -> None:
    """Publish a table of random vectors in the shape of pages."""
    random = np.random.default_rng(1)

    def parts() -> Iterator[list[pa.Array]]:
        for start in range(0, rows, _FILE_ROWS):
            count = min(_FILE_ROWS, rows - start)
            numbers = random.integers(-127, 128, (count, TOKENS, DIM), np.int8)
            numbers[:, :, 0] = 127
            blobs = pa.array([page.tobytes() for page in numbers], BLOBS.type)
            yield [stored_dense(_unit(random, count, DENSE_DIM)), blobs, pa.array([TOKENS] * count, pa.int32())]

    outputs = f"{EMBEDDING} dense {DENSE_DIM}, {BLOBS.name} multi {DIM}"
    write_table(url, model, parts(), {"outputs": outputs, "multi_stored": "int8 blob"})


def search(work: Path, model: Path, rows: int, repeats: int) -> tuple[dict[str, float], float, tuple[int, int]]:
    """Return seconds of warm searches by way, the ratio of late to dense, and the bytes of the table."""
    table = work / f"pages-{rows}"
    if not table.exists():
        write_pages(table, model, rows)
    opened = delta_table.need_table(str(table))
    embedding_spec = delta_table.embedding_spec_of(opened)
    assert embedding_spec is not None
    scan = TableScan(opened, embedding_spec.outputs, VectorCache(work / "cache", 1 << 40))
    random = np.random.default_rng(2)
    question, many = dense(_unit(random, 1, DENSE_DIM)), _many([_unit(random, QUESTION_TOKENS, DIM)])

    def late(count: int) -> None:
        scan.nearest_late(many, K, candidates=scan.nearest(question, count))

    ways: dict[str, Callable[[], object]] = {"dense": lambda: scan.nearest(question, K)}
    ways |= {f"late, {count} candidates": lambda count=count: late(count) for count in CANDIDATES}  # type: ignore[misc]
    took: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + 1):  # the first turn fills the cache
        for way, call in ways.items():
            took[way].append(_processor_s(call))
    found = {way: median(seconds[1:]) for way, seconds in took.items()}
    ratio = median(
        late_s / dense_s for late_s, dense_s in zip(took["late, 200 candidates"][1:], took["dense"][1:], strict=True)
    )
    found["late, all"] = _processor_s(lambda: scan.nearest_late(many, K))
    sizes = sum(file.stat().st_size for file in table.rglob("*.parquet"))
    return found, ratio, (sizes, sizes - rows * TOKENS * DIM)


def _pages(count: int) -> list[npt.NDArray[np.uint8]]:
    """Return small pages of words and bars."""
    random, pages = np.random.default_rng(3), []
    for _ in range(count):
        page = Image.new("RGB", (280, 364), "white")
        draw = ImageDraw.Draw(page)
        for line in range(20):
            if random.random() < 0.7:
                draw.text((14, 14 + 16 * line), " ".join(random.choice(_WORDS, 7)), "black")
            else:
                draw.rectangle(
                    (14, 16 + 16 * line, int(random.integers(20, 260)), 26 + 16 * line),
                    tuple(random.integers(0, 255, 3)),
                )
        pages.append(np.asarray(page))
    return pages


def ladder(model: Path, pages: int, questions: int = 50) -> tuple[list[Rung], tuple[float, float]]:
    """Return what int8, candidates and pooling change, and the least and mean cosine of int8 to float32 vectors."""
    task = "retrieval.passage"
    encoder = load_encoder(EncoderSettings(str(model), task=task, outputs=("dense", "multi"), max_pixels=110_000))
    lists = encoder.spec.outputs[1]
    blobs = lists.stored_as("int8", "blob")
    made = _pages(pages)
    rows, row_vectors = encoder.encode_images(made), encoder.encode_multi(made)
    asked = [" ".join(np.random.default_rng(number).choice(_WORDS, 9)) for number in range(questions)]
    dense_scores = encoder.encode(asked, "retrieval.query") @ rows.T
    many = encoder.encode_multi(asked, "retrieval.query")
    exact = LateQueries(_many(many), lists).scores(_many(row_vectors))
    int8 = _stored(_many(row_vectors), blobs)
    best = np.argsort(-exact, axis=1)[:, :K]
    queries = LateQueries(_many(many), blobs)

    def overlap(scores: Floats) -> float:
        return float(
            np.mean([len({*a} & {*b}) / K for a, b in zip(np.argsort(-scores, axis=1)[:, :K], best, strict=True)])
        )

    def seconds(documents: pa.Array, column: VectorColumn) -> float:
        return median(_processor_s(lambda: LateQueries(_many(many[:1]), column).scores(documents)) for _ in range(5))

    listed = _many(row_vectors)
    stored = queries.scores(int8)
    rungs = [
        Rung("float32, all rows", listed.nbytes / pages, seconds(listed, lists), 1.0),
        Rung("int8, all rows", int8.nbytes / pages, seconds(int8, blobs), overlap(stored)),
    ]
    for count in (count for count in CANDIDATES if count < pages):
        far = np.argsort(-dense_scores, axis=1)[:, count:]
        scores = stored.copy()
        np.put_along_axis(scores, far, -np.inf, axis=1)
        taken = int8.take(pa.array(np.argsort(-dense_scores[0])[:count]))
        rungs.append(Rung(f"int8, {count} candidates", int8.nbytes / pages, seconds(taken, blobs), overlap(scores)))
    for factor in FACTORS:
        fewer = _stored(_many([cluster(vectors, factor) for vectors in row_vectors]), blobs)
        rungs.append(
            Rung(
                f"int8 pooled by {factor}, all rows",
                fewer.nbytes / pages,
                seconds(fewer, blobs),
                overlap(queries.scores(fewer)),
            )
        )
    back, _ = blobs.ragged(int8)
    cosines = np.einsum("ij,ij->i", back, np.concatenate(row_vectors))
    return rungs, (float(cosines.min()), float(cosines.mean()))


def race(
    work: Path, model: Path, seeing: Path, *, rows: int, pages: int, repeats: int, print_progress: Callable[[str], None]
) -> Result:
    """Measure all three."""
    work.mkdir(parents=True, exist_ok=True)
    print_progress("rates of MaxSim")
    found = rates(repeats)
    print_progress(f"searches of {rows:,} pages")
    search_s, ratio, table_bytes = search(work, model, rows, repeats)
    print_progress("the ladder")
    rungs, cosine = ladder(seeing, pages)
    return Result(rows, pages, found, search_s, ratio, table_bytes, cosine, rungs)


def markdown(result: Result, *, command: str, date: str) -> str:
    """Return the page of a result."""
    ours = result.rates["vectide, int8"]
    dense_s = result.search_s["dense"]
    whole, rest = result.table_bytes
    lines = [
        f"# Late interaction, {date}",
        "",
        f"`{command}`, commit {commit()}, {torch.get_num_threads()} threads where it does not say one.",
        "",
        f"{hardware()}. {versions('torch', 'numpy', 'pyarrow', 'deltalake', 'sentence-transformers')}. Medians of turns.",
        "",
        f"## MaxSim of {TOKENS} x {DIM}, a question of {QUESTION_TOKENS} tokens, one thread",
        "",
        "Documents a second of the thread's processor time.",
        "",
        "| way | documents a second | ratio to vectide |",
        "|---|---:|---:|",
        *(f"| {way} | {rate:,.0f} | {rate / ours:.2f} |" for way, rate in result.rates.items()),
        "",
        f"## A question over {result.rows:,} pages, from the filled cache",
        "",
        f"Random vectors: {DENSE_DIM} dense dimensions, {TOKENS} x {DIM} int8. The encoder of the question is left out.",
        "Processor time of all threads.",
        "",
        "| way | ms | ratio to dense |",
        "|---|---:|---:|",
        *(f"| {way} | {took * 1000:.1f} | {took / dense_s:.1f} |" for way, took in result.search_s.items()),
        "",
        f"The median of the ratios of 200 candidates to dense in each turn is {result.ratio:.2f}.",
        "All rows are read from the files, without the cache.",
        "",
        f"The table takes {whole / 1e6:,.0f} MB, {whole / result.rows / 1000:.1f} KB a page.",
        f"Without the many vectors it would take {rest / 1e6:,.0f} MB.",
        "",
        f"## What is found again, of {result.pages:,} made pages by random weights",
        "",
        "How many of the 10 best rows of the exact list of float32 vectors are found.",
        "Random weights say nothing about the quality of hits.",
        "",
        "| way | bytes a page | ms a question | overlap of the top 10 |",
        "|---|---:|---:|---:|",
        *(
            f"| {rung.name} | {rung.bytes_a_row:,.0f} | {rung.question_s * 1000:.1f} | {rung.overlap:.3f} |"
            for rung in result.ladder
        ),
        "",
        f"Cosine of an int8 vector to its float32 one: {result.cosine[1]:.5f} in the mean, {result.cosine[0]:.5f} at least.",
    ]
    return "\n".join(lines) + "\n"
