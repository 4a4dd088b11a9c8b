"""All parts of `python -m benchmarks pages`, and its page."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.encoders.settings import EncoderSettings
from actors.encoders.spec import describe
from benchmarks.pages.backfills import SAMPLE_S, TASK, Facts, measured
from benchmarks.pages.corpus import write_corpus, write_long_pdf
from benchmarks.pages.decoding import File, race
from benchmarks.race import machine
from benchmarks.race.figures import paired_ratio
from benchmarks.scale.memory import NO_MODEL_DIM
from tests.checkpoints.jina_v4 import write_jina_v4

SMALL_PDF = 50


@dataclass(frozen=True, slots=True)
class Result:
    """Results of all parts; `model` is None for the tiny random checkpoint."""

    model: str | None
    max_pixels: int
    files: list[File]
    stages: Facts
    memory: list[Facts]


def measure(
    work: Path,
    *,
    model: Path | None,
    source: Path | None,
    pages: int,
    repeats: int,
    print_progress: Callable[[str], None],
) -> Result:
    """Run all parts; files go to `work`."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    used = model or write_jina_v4(work / "model", hidden=NO_MODEL_DIM)
    settings = describe(EncoderSettings(str(used), task=TASK)).seeing().pictures
    assert settings is not None
    if source is None:
        print_progress("writing the files")
        write_corpus(work / "corpus")
    corpus = source or work / "corpus"
    files = race(corpus, settings, repeats, print_progress)
    print_progress("a backfill of the files")
    stages = measured(work / "stages", corpus, used, whole=True)
    memory = []
    for count in (SMALL_PDF, pages):
        print_progress(f"a backfill of {count:,} pages")
        write_long_pdf(work / f"{count}" / "long.pdf", count)
        facts = measured(work / "memory", work / f"{count}", used, whole=model is not None)
        if facts["rows"] != count:
            raise SystemExit(f"{facts['rows']} of {count} pages came out")
        memory.append(facts)
        print_progress(f"{count:,} pages: {facts}")
    return Result(str(model) if model else None, settings.max_pixels, files, stages, memory)


def _ms(seconds: Sequence[float], file: File) -> str:
    return f"{1000 * statistics.median(seconds) / file.pages:.1f}"


def markdown(result: Result, *, command: str, date: str) -> str:
    """Return the page of a result."""
    model = result.model or "a tiny random checkpoint in v4's layout, which says nothing about v4's own time"
    facts = f"{machine.hardware()}. {machine.versions('pypdfium2', 'pillow', 'torch')}. Load averages {machine.load()}."
    lines = [
        f"# Pages and pictures, {date}",
        "",
        f"`{command}`, commit {machine.commit()}. At most {result.max_pixels:,} pixels a page.",
        "",
        facts,
        "",
        "## Render and resize",
        "",
        (
            f"One process that decodes (pipes included) against pypdfium2 and Pillow alone in one thread, medians of "
            f"{len(result.files[0].ours_s)} turns. Ratios are medians over turns; those of the processor's seconds depend "
            "least on other work. `same` counts the pages with equal pixels."
        ),
        "",
        "| file | pages | same | ms a page | bare | ratio | ratio of processor | bare: render or decode | bare: resize |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for file in result.files:
        resize_s = [whole - draw for whole, draw in zip(file.bare_s, file.draw_s, strict=True)]
        lines.append(
            f"| {file.path.name} | {file.pages} | {file.same} | {_ms(file.ours_s, file)} | {_ms(file.bare_s, file)} | "
            f"{paired_ratio(file.ours_s, file.bare_s):.2f} | {paired_ratio(file.ours_cpu_s, file.bare_cpu_s):.2f} | "
            f"{_ms(file.draw_s, file)} | {_ms(resize_s, file)} |"
        )
    rows = result.stages["rows"]
    encoder = "" if result.model else " without a model (vectors from a table, as in `python -m benchmarks memory`)"
    lines += [
        "",
        "## Seconds by stage",
        "",
        f"A backfill of these files in one process, {rows:,} pages. Model: {model}.",
        "",
        "| stage | seconds | pages a second |",
        "|---|---:|---:|",
    ]
    names = {"read": "read: render, decode, resize", "tokenize": "prompts", "vision": "vision tower"}
    names |= {"language": "language model, and the start of the encoder"}
    for stage in ("read", "tokenize", "vision", "language", "write"):
        spent = result.stages["stage_s"].get(stage, 0.0)
        lines.append(f"| {names.get(stage, stage)} | {spent:.2f} | {rows / max(spent, 1e-9):,.1f} |")
    lines += [
        "",
        "## Memory by the number of pages",
        "",
        (
            f"Backfills in one process: of one PDF of A4 pages each{encoder}, and of the files above. A peak is that of the "
            f"sum over all processes of their memory (Pss, sampled every {SAMPLE_S:g} s), and for a process that decodes "
            "that of its resident memory. Pillow takes 4 bytes a pixel: 320 MB for a picture of 80 million pixels."
        ),
        "",
        "| source | pages | units | peak, MiB | x | process that decodes, MiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    first = result.memory[0]["peak_mib"]
    for source, each in zip(["one PDF"] * 2 + ["the files"], [*result.memory, result.stages], strict=True):
        ratio = f"{each['peak_mib'] / first:.2f}" if source == "one PDF" else ""
        lines.append(
            f"| {source} | {each['rows']:,} | {each['units']:,} | {each['peak_mib']:,} | {ratio} | {each['child_mib']:,} |"
        )
    return "\n".join([*lines, ""])
