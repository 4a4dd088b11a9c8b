"""Folders of PDFs, pictures and texts, and columns of pictures: planned, embedded, refreshed, searched, quarantined."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from actors.encoders import load_encoder
from actors.errors import ConfigError, DataError
from actors.images.workers import DecodePool
from actors.source.formats.pages import Pages
from actors.vectors import vectors_of
from jobs.cli import app
from jobs.output import print_outcome
from pipeline.run.backfill import backfill
from pipeline.run.compact import compact
from pipeline.run.estimate import estimate
from pipeline.run.refresh import refresh
from pipeline.run.retry import refresh_again
from pipeline.search.pages import write_pages
from pipeline.search.search import Searcher
from pipeline.table.diff import diff
from pipeline.table.quarantine import quarantine
from tests.checkpoints.bert import write_bert
from tests.checkpoints.jina_v4 import write_jina_v4
from tests.integration.conftest import Stopping, Stops, make_job

TASK = "retrieval.passage"


@pytest.fixture(scope="module")
def seeing_model(tmp_path_factory) -> Path:
    return write_jina_v4(tmp_path_factory.mktemp("v4"), nested=True)


def picture(number: int, size: tuple[int, int] = (120, 80)) -> Image.Image:
    image = Image.new("RGB", size, (40 * number % 256, 90, 200 - 10 * number % 200))
    ImageDraw.Draw(image).rectangle((10, 10, 20 + 5 * number, 40), fill=(250, 30 * number % 256, 0))
    return image


def png(number: int, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture(number, **options).save(buffer, "PNG")
    return buffer.getvalue()


def write_pdf(path: Path, numbers: list[int]) -> None:
    first, *others = [picture(number, (200, 300)) for number in numbers]
    temporary = path.with_name(f".{path.name}")
    first.save(temporary, "PDF", save_all=True, append_images=others)
    temporary.replace(path)


def write_folder(folder: Path) -> Path:
    """Seven rows that are embedded, and four files that are not."""
    (folder / "sub").mkdir(parents=True)
    write_pdf(folder / "report.pdf", [1, 2, 3])
    (folder / "photo.png").write_bytes(png(4))
    picture(5).save(folder / "sub" / "really-a-jpeg.png", "JPEG")
    (folder / "words.txt").write_text("net interest margin by quarter")
    (folder / "notes.md").write_text("some notes")
    (folder / "page.jpg").write_text("<html><body>404 Not Found</body></html>")
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.pdf").write_bytes((folder / "report.pdf").read_bytes()[:400])
    (folder / "blank.txt").write_text(" \n")
    return folder


def job_of(folder: Path, table: Path, model: Path, **changes: Any):
    changes = {
        "source": {"uri": str(folder)},
        "encoder": {"model": str(model), "task": TASK, "dtype": "float32"},
        "table__precision": "float32",
        "run__max_quarantined": 1.0,
        **changes,
    }
    return make_job(folder, table, model, **changes)


def stored(table: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in DeltaTable(str(table)).to_pyarrow_table().to_pylist()}


def test_a_folder_of_pdfs_pictures_and_texts_becomes_rows(tmp_path, seeing_model):
    folder = write_folder(tmp_path / "in")
    job = job_of(folder, tmp_path / "table", seeing_model, table__keep_text=True)
    planned = estimate(job, tokens_per_s=100.0)
    assert (planned.rows, planned.rows_exact) == (11, True)
    assert 0 < planned.picture_share < 1
    assert planned.patches > 0
    outcome = backfill(job)
    assert (outcome.rows, outcome.quarantined) == (7, 4)
    rows = stored(tmp_path / "table")
    assert {name: row["page"] for name, row in rows.items()} == {
        **{f"report.pdf:{page}": page for page in (1, 2, 3)},
        **dict.fromkeys(("photo.png:0", "sub/really-a-jpeg.png:0", "words.txt:0", "notes.md:0")),
    }
    assert rows["words.txt:0"]["text"] == "net interest margin by quarter"
    assert rows["photo.png:0"]["text"] is None
    bad = {Path(row.shard).name: (row.reason, row.error) for row in quarantine(job.table.uri).rows}
    assert set(bad) == {"page.jpg", "empty.png", "half.pdf", "blank.txt"}
    assert "an HTML page" in bad["page.jpg"][1]

    encoder = load_encoder(str(seeing_model), task=TASK, dtype="float32")
    (expected,) = encoder.encode(["net interest margin by quarter"])
    np.testing.assert_allclose(rows["words.txt:0"]["embedding"], expected, atol=1e-5)
    (expected,) = encoder.encode_images([folder / "photo.png"])
    np.testing.assert_allclose(rows["photo.png:0"]["embedding"], expected, atol=1e-5)
    assert rows["photo.png:0"]["tokens"] > 11

    assert not backfill(job).published


def test_animations_and_colour_profiles_that_cannot_be_used_are_counted(tmp_path, seeing_model, capsys):
    folder, table = tmp_path / "in", tmp_path / "table"
    folder.mkdir()
    picture(1).save(folder / "two.gif", save_all=True, append_images=[picture(2)])
    picture(3).save(folder / "profile.png", icc_profile=b"no profile")
    picture(4).save(folder / "plain.png")
    (folder / "a.txt").write_text("a text")
    outcome = backfill(job_of(folder, table, seeing_model))
    assert (outcome.rows, outcome.animated, outcome.unconverted) == (4, 1, 1)
    print_outcome(outcome)
    printed = capsys.readouterr().out
    assert "1 picture of several frames: the first frame is embedded" in printed
    assert "1 picture with a colour profile that cannot be used: embedded as stored" in printed

    column = tmp_path / "column"
    column.mkdir()
    cells = [(folder / name).read_bytes() for name in ("two.gif", "profile.png")]
    pq.write_table(pa.table({"id": ["a", "b"], "image": cells}), column / "0.parquet")
    source = {"uri": str(column), "id": "id", "image": "image"}
    outcome = backfill(job_of(column, tmp_path / "other", seeing_model, source=source))
    assert (outcome.rows, outcome.animated, outcome.unconverted) == (2, 1, 1)


def test_a_pdf_that_gains_a_page_costs_that_page(tmp_path, seeing_model):
    """Every other row keeps all its bytes: its vector, its many vectors, and the grid of its picture."""
    folder, table = write_folder(tmp_path / "in"), tmp_path / "table"
    encoder = {"model": str(seeing_model), "task": TASK, "dtype": "float32", "outputs": ["dense", "multi"]}
    job = job_of(folder, table, seeing_model, encoder=encoder)
    backfill(job)
    before = stored(table)
    for name, row in before.items():
        assert row["embedding_multi_n"] == row["tokens"] == len(vectors_of([row["embedding_multi"]], dim=8)[0])
        is_text = name.startswith(("words", "notes"))
        assert (row["grid_h"], row["grid_w"]) == (
            (None, None) if is_text else (3, 4) if "pdf" not in name else (30, 20)
        )
    write_pdf(folder / "report.pdf", [1, 2, 3, 6])
    outcome = refresh(job)
    assert (outcome.rows, outcome.encoded) == (8, 1)
    after = stored(table)
    assert {name: after[name] for name in before} == before
    changed = diff(str(table), 1, 2)
    assert (changed.added, changed.removed, changed.changed) == (1, 0, 0)
    compact(str(table))
    assert stored(table) == after
    (folder / "report.pdf").unlink()
    assert refresh(job).rows == 4


def test_a_refresh_decodes_only_files_that_changed_and_each_once(tmp_path, seeing_model, monkeypatch):
    folder, table = write_folder(tmp_path / "in"), tmp_path / "table"
    job = job_of(folder, table, seeing_model)
    backfill(job)
    (folder / "photo.png").write_bytes(png(7))
    read = []
    plain = Pages.read

    def recorded(self, piece, wanted):
        read.append(Path(piece.shard.path).name)
        return plain(self, piece, wanted)

    monkeypatch.setattr(Pages, "read", recorded)
    decoded = []
    do = DecodePool._do

    def decoding(pool, task, key=None):
        decoded.append(task)
        return do(pool, task, key)

    monkeypatch.setattr(DecodePool, "_do", decoding)
    outcome = refresh(job)
    assert len(decoded) == 1
    assert set(read) == {"photo.png"}
    assert (len(stored(table)), outcome.encoded) == (7, 1)


def test_a_stopped_backfill_of_pages_resumes(tmp_path, seeing_model):
    folder, table = write_folder(tmp_path / "in"), tmp_path / "table"
    write_pdf(folder / "long.pdf", list(range(12)))
    job = job_of(folder, table, seeing_model, run__unit_rows=4)
    with pytest.raises(Stops):
        backfill(job, Stopping(after=2))
    outcome = backfill(job)
    assert outcome.rows == 19
    whole = job_of(folder, tmp_path / "whole", seeing_model, run__unit_rows=4)
    backfill(whole)
    expected = stored(tmp_path / "whole")
    assert {name: row["embedding"] for name, row in stored(table).items()} == {
        name: row["embedding"] for name, row in expected.items()
    }


def test_search_by_a_text_and_by_a_picture_finds_pages(tmp_path, seeing_model):
    folder, table = write_folder(tmp_path / "in"), tmp_path / "table"
    backfill(job_of(folder, table, seeing_model))
    searcher = Searcher(str(table))
    by_text, by_picture = searcher.search(["net interest", (folder / "photo.png").read_bytes()], k=7)
    assert len(by_text) == 7
    assert by_picture[0].id == "photo.png:0"
    assert by_picture[0].score == pytest.approx(1, abs=1e-5)
    written, notes = write_pages(by_picture, str(tmp_path / "pages"))
    assert (len(written), len(notes)) == (5, 2)
    sizes = {Path(path).name: Image.open(path).size for path in written}
    (page,) = [size for name, size in sizes.items() if name.endswith("report.pdf_2.png")]
    assert page[0] / page[1] == pytest.approx(2 / 3, abs=0.05)
    asked = CliRunner().invoke(app, ["search", str(table), "--image", str(folder / "page.jpg")])
    assert isinstance(asked.exception, DataError)
    assert re.search("^--image '.*page.jpg' cannot be encoded: the file is an HTML page", str(asked.exception))


def cells() -> dict[str, tuple[str | None, Any]]:
    return {
        "text": ("a text", None),
        "picture": (None, png(1)),
        "blank text": (" ", png(2)),
        "both": ("words", png(3)),
        "neither": (None, b""),
        "no picture": (None, b"not a picture"),
    }


@pytest.mark.parametrize("kind", ["large_binary", "binary_view", "struct", "path", "base64", "jsonl", "dictionary"])
def test_a_column_of_pictures_is_taken_in_each_of_its_forms(tmp_path, seeing_model, kind):
    folder, table = tmp_path / "in", tmp_path / "table"
    folder.mkdir()
    names, texts = list(cells()), [text for text, _ in cells().values()]
    pictures: list[Any] = [cell for _, cell in cells().values()]
    arrow: pa.DataType = {"large_binary": pa.large_binary(), "binary_view": pa.binary_view()}.get(kind, pa.binary())
    if kind == "struct":
        arrow = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pictures = [None if cell is None else {"bytes": cell, "path": "elsewhere.png"} for cell in pictures]
        pictures[4] = {"bytes": None, "path": None}
    elif kind == "path":
        arrow = pa.string()
        for name, cell in zip(names, pictures, strict=True):
            (tmp_path / "in" / f".{name}.bin").write_bytes(cell or b"")
        pictures = [f".{name}.bin" if cell else None for name, cell in zip(names, pictures, strict=True)]
    elif kind in ("base64", "jsonl"):
        arrow = pa.string()
        pictures = [None if cell is None else base64.b64encode(cell).decode() for cell in pictures]
    if kind == "jsonl":
        lines = [
            {"id": name, "text": text, "image": cell} for name, text, cell in zip(names, texts, pictures, strict=True)
        ]
        (folder / "0.jsonl").write_text("\n".join(map(json.dumps, lines)))
    else:
        column = pa.array(pictures, arrow)
        column = column.dictionary_encode() if kind == "dictionary" else column
        pq.write_table(pa.table({"id": names, "text": texts, "image": column}), folder / "0.parquet")
    source = {"uri": f"{folder}/0.*", "id": "id", "image": "image"}
    outcome = backfill(job_of(folder, table, seeing_model, source=source))
    assert set(stored(table)) == {"text", "picture", "blank text"}
    assert outcome.quarantined == 3
    reasons = {row.id: row.reason for row in quarantine(str(table)).rows}
    unlike = (
        "fetch_failed" if kind in ("base64", "jsonl") else "bad_picture"
    )  # a text of no picture is taken for a path
    assert reasons == {"both": "text_and_picture", "neither": "empty_text", "no picture": unlike}
    encoder = load_encoder(str(seeing_model), task=TASK, dtype="float32")
    np.testing.assert_allclose(stored(table)["picture"]["embedding"], encoder.encode_images([png(1)])[0], atol=1e-5)

    for prefer, rows in (("image", encoder.encode_images([png(3)])), ("text", encoder.encode(["words"]))):
        other = tmp_path / prefer
        backfill(job_of(folder, other, seeing_model, source={**source, "prefer": prefer}))
        np.testing.assert_allclose(stored(other)["both"]["embedding"], rows[0], atol=1e-5)


def test_what_cannot_be_done_is_refused_before_any_work(tmp_path, seeing_model):
    folder = write_folder(tmp_path / "in")
    bert = write_bert(tmp_path / "bert")
    table = tmp_path / "table"
    with pytest.raises(ConfigError, match="has pictures or PDFs, and model .* takes texts only"):
        estimate(job_of(folder, table, bert, encoder={"model": str(bert)}))
    with pytest.raises(ConfigError, match=r"chunking.mode split cuts texts, and .* is 'page'"):
        estimate(job_of(folder, table, seeing_model, chunking__mode="split"))
    with pytest.raises(ConfigError, match="matches files that are pictures themselves; leave image out"):
        estimate(job_of(folder, table, seeing_model, source={"uri": str(folder), "image": "image"}))
    with pytest.raises(ConfigError, match="prefer is about a column of pictures"):
        job_of(folder, table, seeing_model, source={"uri": str(folder), "prefer": "text"})
    (folder / "page=7").mkdir()
    write_pdf(folder / "page=7" / "a.pdf", [1, 2])
    with pytest.raises(ConfigError, match="has 'page' as a column and as a folder, and the job needs that column"):
        estimate(job_of(folder, table, seeing_model, source={"uri": str(folder), "hive": True}))
    with pytest.raises(ConfigError, match="fetch: must be true, false or a list of hosts, as in .*, not 5"):
        job_of(folder, table, seeing_model, source={"uri": str(folder), "image": "image", "fetch": 5})
    with pytest.raises(ConfigError, match="--pages-out 's3://a/b' is not on this machine"):
        write_pages([], "s3://a/b")
    column = tmp_path / "column"
    column.mkdir()
    pq.write_table(pa.table({"id": ["a"], "image": [7]}), column / "0.parquet")
    source = {"uri": str(column), "id": "id", "image": "image"}
    with pytest.raises(ConfigError, match="names 'image', which is int64 in .*; it must be bytes, text"):
        estimate(job_of(column, table, seeing_model, source=source))
    with pytest.raises(ConfigError, match="source.image names 'image', and model .* takes texts only"):
        estimate(job_of(column, table, bert, source=source, encoder={"model": str(bert)}))
    pq.write_table(pa.table({"id": ["a"], "image": ["https://example.com/a.png"]}), column / "0.parquet")
    with pytest.raises(ConfigError, match="has URLs such as .*, and source.fetch does not allow them"):
        estimate(job_of(column, table, seeing_model, source=source))
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("a text")
    with pytest.raises(ConfigError, match="encoder.exif is about pictures, and source.uri .* has texts only"):
        estimate(
            job_of(texts, table, seeing_model, encoder={"model": str(seeing_model), "task": TASK, "exif": "ignore"})
        )
    backfill(job_of(texts, table, bert, encoder={"model": str(bert), "dtype": "float32"}))
    with pytest.raises(ConfigError, match="the question is a picture, and the table's model .* takes texts only"):
        Searcher(str(table)).search([png(1)])


def test_a_caller_s_object_that_is_no_picture_is_named(seeing_model):
    encoder = load_encoder(str(seeing_model), task=TASK, dtype="float32")
    closed = Image.open(io.BytesIO(png(1)))
    closed.close()
    wrong: list[tuple[Any, str]] = [
        (5, "int is neither bytes, a path"),
        (None, "NoneType is neither"),
        (closed, "closed image"),
    ]
    for image, error in wrong:
        with pytest.raises(DataError, match=f"image 1 cannot be encoded: .*{error}"):
            encoder.encode_images([png(1), image])


def test_a_picture_that_was_missing_is_embedded_by_a_retry(tmp_path, seeing_model):
    folder, table = tmp_path / "in", tmp_path / "table"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(1))
    (folder / "0.csv").write_text("id,image\na,a.png\nb,b.png\n")
    job = job_of(folder, table, seeing_model, source={"uri": f"{folder}/*.csv", "id": "id", "image": "image"})
    assert backfill(job).quarantined == 1
    (folder / "b.png").write_bytes(png(2))
    outcome = refresh_again(job)
    assert (outcome.rows, outcome.encoded, outcome.quarantined) == (2, 1, 0)


def test_a_kept_column_of_pictures_may_have_the_name_of_a_grid(tmp_path, seeing_model):
    folder, table = tmp_path / "in", tmp_path / "table"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(1))
    source = {"uri": f"{folder}/*.csv", "id": "id", "image": "image", "keep": ["grid_h", "grid_w"]}
    job = job_of(folder, table, seeing_model, source=source)
    for run, kept in ((backfill, "one"), (refresh_again, "two")):
        (folder / "0.csv").write_text(f"id,image,grid_h,grid_w\na,a.png,7,{kept}\n")
        run(job)
        assert DeltaTable(str(table)).to_pyarrow_table(columns=["grid_w"])["grid_w"].to_pylist() == [kept]


def test_many_vectors_of_pictures_are_pooled_once_and_those_of_texts_stay(tmp_path, seeing_model):
    folder = tmp_path / "in"
    folder.mkdir()
    write_pdf(folder / "report.pdf", [1, 2])
    (folder / "photo.png").write_bytes(png(4))
    (folder / "words.txt").write_text("net interest margin by quarter")
    settings: dict[str, Any] = {"task": TASK, "dtype": "float32", "outputs": ["dense", "multi"], "multi_pool": 2}
    changes = {"encoder": {"model": str(seeing_model), **settings}, "table__multi": {"precision": "float32"}}
    job = job_of(folder, tmp_path / "table", seeing_model, **changes)
    planned = estimate(job, tokens_per_s=1.0)
    assert planned.vectors == "32 dimensions in float32, 8 dimensions a token in float32"
    assert backfill(job).rows == 4
    before = stored(tmp_path / "table")
    vectors_bytes = planned.output_bytes - 4 * (60 + 4.08 * 32)
    assert vectors_bytes == pytest.approx(32 * sum(row["embedding_multi_n"] for row in before.values()), rel=0.02)
    encoder = load_encoder(str(seeing_model), **settings)
    expected = encoder.encode_multi([(folder / "photo.png").read_bytes(), "net interest margin by quarter"])
    for name, vectors in zip(("photo.png:0", "words.txt:0"), expected, strict=True):
        (found,) = vectors_of([before[name]["embedding_multi"]], dim=8, precision="float32")
        np.testing.assert_allclose(found, vectors, atol=1e-5)
        assert before[name]["embedding_multi_n"] == len(vectors)
    photo, words = before["photo.png:0"], before["words.txt:0"]
    grid = photo["grid_h"] * photo["grid_w"]
    assert photo["tokens"] - photo["embedding_multi_n"] == grid - grid // 2
    assert (words["embedding_multi_n"], words["grid_h"], words["grid_w"]) == (words["tokens"], None, None)
    write_pdf(folder / "report.pdf", [1, 2, 3])
    assert refresh(job).encoded == 1
    after = stored(tmp_path / "table")
    assert {name: row for name, row in after.items() if name in before} == before
