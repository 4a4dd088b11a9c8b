"""Reads the sources of a training job, checks them, and writes them as memory-mapped files. Runs in the driver.

Texts go from the source to the disk in parts; only hashes and numbers of the rows are in memory. What is written depends on
the rows and the seed alone. A folder is named by the state of everything that it was read from, so a resume reads nothing.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc

from actors import storage
from actors.errors import ConfigError, DataError
from actors.quantities import counted
from pipeline.job.training import Training
from pipeline.job.validation import shown
from pipeline.plan.rows import state_of
from pipeline.train.data import DATA_FILE, LABEL, ROWS_FILE, Source, TrainingData, open_data, write_data
from pipeline.train.negatives import add_mined, write_negatives
from pipeline.train.source_rows import WITH_NEGATIVES, Reader
from pipeline.train.teacher import Teacher
from pipeline.train.writer import Found, Part, Writer, keep_rows

_FORMAT = 1  # of the files; another one is another folder
_SAID_ROWS = 500_000


class Reporter(Protocol):
    """Receives the progress."""

    def step(self, text: str) -> None:
        """Say what begins."""


def check(job: Training) -> None:
    """Raise ConfigError if a source is not there or lacks a column. Only heads of files are read."""
    for number in range(len(job.data)):
        _Parts(job, number)


class _Parts:
    """What a source is read with; see `Reader` and `Teacher` for what they raise."""

    def __init__(self, job: Training, number: int) -> None:
        source = job.data[number]
        self.reader = Reader(job, number)
        self.teacher = None if source.teacher is None else Teacher(source.teacher, f"data.{number}.teacher")


def prepare(job: Training, folder: Path, held_out: Collection[bytes], progress: Reporter) -> TrainingData:
    """Write the rows of all sources to a folder below `folder`, or find them there.

    Args:
        job: The job.
        folder: Local folder.
        held_out: Content hashes, 16 bytes each, of texts that must be in no pair.
        progress: Receives the progress.

    Raises:
        ConfigError: a source is not there, lacks a column, or has fewer rows than a step; or negatives are missing.
        DataError: a held-out text is in a pair, negatives are of other pairs, or a value is wrong.
        StorageError: a store refused or failed.
    """
    parts = [_Parts(job, number) for number in range(len(job.data))]
    place = folder / f"data-{state_of_sources(job, held_out)}"
    if (place / DATA_FILE).exists() and (found := _opened(place)) is not None:
        return found
    part = folder / "data.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        _write(job, parts, part, held_out, progress)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for other in folder.glob("data-*"):
        shutil.rmtree(other)
    part.rename(place)
    return open_data(place)


def _opened(folder: Path) -> TrainingData | None:
    """Return the data in a folder; None if a file of it is missing, cut off or of another shape."""
    try:
        data = open_data(folder)
        for source in data.sources:
            source.take([0])
    except (OSError, EOFError, ValueError, LookupError, TypeError):  # Arrow's errors are ValueErrors, too
        return None
    return data


def _write(job: Training, parts: list[_Parts], folder: Path, held_out: Collection[bytes], progress: Reporter) -> None:
    """Write all sources and the file that makes the folder complete."""
    sources, counts, digest = [], {}, blake2b(digest_size=16)
    leaked: Counter[str] = Counter()
    for number, (each, name) in enumerate(zip(parts, _names(job), strict=True)):
        own = folder / f"{number:03d}"
        own.mkdir(parents=True)
        with Writer(own, held_out, leaked) as writer:
            for rows in _said(each.reader, name, progress):
                writer.write(rows)
        if leaked:  # the others are read for their number
            continue
        source, counts[name] = _finish(job, number, each, name=name, folder=own, found=writer.found())
        sources.append(source)
        digest.update(json.dumps([source.loss, source.weight, source.negatives, source.label, source.teacher]).encode())
        for file in sorted(own.iterdir()):
            with file.open("rb") as stream:
                for block in iter(lambda: stream.read(1 << 20), b""):
                    digest.update(block)
    if leaked:
        raise DataError(
            f"texts of train.evaluate.queries are in {counted(leaked.total(), 'pair')}, {shown(next(iter(leaked)))} first; a "
            f"model must not be trained with what it is evaluated with. Remove these pairs, or name other held-out queries"
        )
    write_data(TrainingData(tuple(sources), folder, digest.hexdigest(), counts))


def _said(reader: Reader, name: str, progress: Reporter) -> Iterator[Part]:
    """Yield the parts of a source; say from time to time how many rows were read."""
    progress.step(f"reading {name}")
    said = 0
    for part in reader.parts():
        yield part
        if reader.read >= said + _SAID_ROWS:
            said = reader.read
            progress.step(f"reading {name}: {said:,} rows")


def _finish(
    job: Training, number: int, parts: _Parts, *, name: str, folder: Path, found: Found
) -> tuple[Source, dict[str, int]]:
    """Write the teacher's vectors and the negatives of a source whose rows are written; return it with its counts."""
    source, reader, teacher = job.data[number], parts.reader, parts.teacher
    counts = Counter({"read": reader.read}) + reader.left_out
    where = f"data.{number}.uri {source.uri!r}"
    if found.rows and teacher is not None:
        keep = teacher.write(found, folder)
        if not keep.all():
            counts["left out: no vector of the teacher"] = int((~keep).sum())
            keep_rows(folder / ROWS_FILE, keep)
            found = found.select(keep)
    if found.rows < job.train.batch_rows:
        raise ConfigError(_too_few(where, job, counts, found.rows))
    width = 0
    if source.loss in WITH_NEGATIVES:
        if reader.mining is not None:
            found = add_mined(reader.mining, source, found, folder, counts)
        random = np.random.default_rng([job.train.seed, 2, number])
        width = write_negatives(found, source.negatives_per_row, folder, random=random, counts=counts, where=where)
    if not width and job.train.stage == "triplets" and source.loss == "infonce":
        raise ConfigError(
            f"{where} has no negatives, which stage triplets needs: give a column `negative`, name columns in "
            f"negative_columns, mine some with `vectide mine`, or set train.stage: pairs"
        )
    if source.loss == "infonce" and not width:
        for column, texts in ((source.query, found.query), (source.passage, found.passage)):
            if (texts == texts[0]).all():
                raise DataError(
                    f"{where}: all {found.rows:,} rows have the same text in the column {column!r}, and loss infonce compares "
                    f"rows with different ones; check the column, or give negatives"
                )
    counts["kept"] = found.rows
    made = Source(
        name,
        folder,
        source.weight,
        str(source.loss),
        width,
        found.rows,
        reader.label_kind,
        0 if teacher is None else teacher.width,
    )
    if made.label and not width and pc.count_distinct(made.dataset.data.column(LABEL)).as_py() == 1:
        is_score = made.label == "number"
        raise DataError(
            f"{where}: all {found.rows:,} rows have the same {'score' if is_score else 'class'}, and loss {source.loss} compares "
            f"rows with different ones; check the column {(source.score if is_score else source.label)!r}"
        )
    return made, {key: count for key, count in counts.items() if count or key in ("read", "kept")}


def _too_few(where: str, job: Training, counts: Counter[str], rows: int) -> str:
    """Return the message for a source with fewer rows than a step."""
    reasons = ", ".join(
        f"{key.removeprefix('left out: ')} {count:,}" for key, count in counts.items() if key.startswith("left out: ")
    )
    of = f" of {counts['read']:,} that were read (left out: {reasons})" if reasons else ""
    if not rows:
        return f"{where} has no row to train with{of}; check where, and the columns of queries and passages"
    fix = f"set train.batch_rows to {rows} or less, or give more rows" if rows > 1 else "give more rows"
    return (
        f"{where} has {rows:,} {'row' if rows == 1 else 'rows'}{of}, and a step takes train.batch_rows = "
        f"{job.train.batch_rows:,} of one source; {fix}"
    )


def _names(job: Training) -> list[str]:
    """Return a name for each source: the last part of its URL without a wildcard, numbered where two have the same."""
    names: list[str] = []
    for source in job.data:
        parts = [part for part in source.uri.rstrip("/").split("/") if part and "*" not in part]
        name = parts[-1].partition(".")[0] or "source" if parts else "source"
        taken = sum(each == name or each.startswith(f"{name}-") for each in names)
        names.append(f"{name}-{taken + 1}" if taken else name)
    return names


def state_of_sources(job: Training, held_out: Collection[bytes] = ()) -> str:
    """Return a hash of what the data are made of: the job's sources, and the state of all files that are read."""
    read: list[Any] = [_FORMAT, job.train.seed, job.train.stage, job.train.batch_rows]
    for source in job.data:
        read += [source.model_dump(mode="json"), state_of(source.uri, format=source.format)]
        if source.negatives is not None:
            read.append([[each.path, each.etag] for each in storage.walk(storage.absolute(source.negatives))])
        read += [state_of(uri) for uri in (source.texts and source.texts.uri, source.teacher) if uri]
    digest = blake2b(json.dumps(read).encode(), digest_size=8)
    for each in sorted(held_out):
        digest.update(each)
    return digest.hexdigest()
