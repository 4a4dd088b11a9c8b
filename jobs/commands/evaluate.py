"""`vectide evaluate`: tells how good a table or a model is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer
from rich import box
from rich.table import Column
from rich.table import Table as RichTable

from actors.errors import ConfigError
from jobs import output
from jobs.options import AsJson, load_job
from pipeline.scan import DEFAULT_CACHE_SIZE

if TYPE_CHECKING:
    from pipeline.evaluate.result import Evaluated, Evaluation
    from pipeline.evaluate.texts import Subject
    from pipeline.quality.bootstrap import Difference, Interval
    from pipeline.search.search import Searcher


_SOURCES = "--queries with --judgements, --beir, --sts, --negation or --alignment"


def evaluate(  # noqa: PLR0917  (typer's arguments are options by name)
    table: Annotated[str | None, typer.Argument(metavar="[TABLE]", help="URI of the table.")] = None,
    queries: Annotated[str | None, typer.Option(metavar="URI", help="A Parquet file of queries: `id`, `text`.")] = None,
    judgements: Annotated[
        str | None,
        typer.Option(metavar="URI", help="A Parquet file of judgements: `query`, `doc`, `relevance` if graded."),
    ] = None,
    beir: Annotated[
        str | None, typer.Option(metavar="DIR", help="A folder of BEIR: `queries.jsonl`, `qrels/test.tsv`.")
    ] = None,
    split: Annotated[str, typer.Option(help="The judgements of --beir to use: `qrels/SPLIT.tsv`.")] = "test",
    sts: Annotated[
        str | None, typer.Option(metavar="URI", help="A Parquet file: `sentence1`, `sentence2`, `score`.")
    ] = None,
    negation: Annotated[
        str | None, typer.Option(metavar="URI", help="A Parquet file: `anchor`, `entailment`, `negative`.")
    ] = None,
    alignment: Annotated[str | None, typer.Option(metavar="URI", help="A Parquet file: `text`, `image`.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME_OR_DIR",
            help="A model to evaluate, twice to compare two; with a TABLE: the new place of its model, if it has moved.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the job of --model, as in encoder.dim=256."),
    ] = None,
    version: Annotated[int | None, typer.Option(min=0, help="Version of the table; default: the current one.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="TABLE[@VERSION]", help="Compare with this table or version.")
    ] = None,
    dims: Annotated[
        str | None, typer.Option(metavar="N,N", help="Compare vectors cut to so many dimensions, as in 384,128.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="TYPE,TYPE", help="Compare float32, float16, bfloat16, int8 and binary vectors."),
    ] = None,
    address: Annotated[str | None, typer.Option(help="Scan on this Ray cluster; queries are encoded here.")] = None,
    cache_size: Annotated[str, typer.Option(help="Limit of the local cache of vectors.")] = DEFAULT_CACHE_SIZE,
    out: Annotated[
        str | None, typer.Option(metavar="URI", help="A folder for the result and the values of each item.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Measure how good a table or a model is, with 95 % intervals: retrieval, similarity, negation, alignment."""
    if (queries is None) != (judgements is None):
        raise ConfigError("--queries and --judgements go together: the file of queries and the file of judgements")
    files = {"queries": queries, "beir": beir, "sts": sts, "negation": negation, "alignment": alignment}
    if len(given := [name for name, value in files.items() if value is not None]) != 1:
        raise ConfigError(f"give one of {_SOURCES}, not {len(given)}")
    tables = _tables(table, version, against, model, address=address, cache_size=cache_size)
    ladder: _Ladder = {"dims": _numbers(dims), "precisions": _words(precision)}
    if given[0] in ("queries", "beir"):
        from pipeline.evaluate.beir import read_beir
        from pipeline.evaluate.table import evaluate_tables
        from pipeline.quality.judged import read_judged

        if not tables:
            raise ConfigError(f"--{given[0]} needs the TABLE to search; `vectide backfill` makes one of the documents")
        options = ("--queries", "--judgements")
        judged = read_beir(beir, split) if beir else read_judged(str(queries), str(judgements), options=options)
        evaluated = evaluate_tables(tables, judged, **ladder)
    else:
        evaluated = _texts(given[0], str(files[given[0]]), tables, _models(table, model, settings), ladder)
    _finish(evaluated, out, json=json)
    for searcher in tables:
        if searcher.cache_problem is not None:
            print(f"note: {searcher.cache_problem}", file=sys.stderr)


class _Ladder(TypedDict):
    dims: list[int] | None
    precisions: list[str] | None


def _texts(ability: str, file: str, tables: list[Searcher], models: list[Subject], ladder: _Ladder) -> Evaluated:
    from pipeline.evaluate.texts import Subject, evaluate_texts

    subjects = [Subject(f"{each.url}, version {each.version}", each.encoder) for each in tables] + models
    if not subjects:
        raise ConfigError(f"--{ability} needs a TABLE, whose model is evaluated, or a model by --model")
    return evaluate_texts(ability, file, subjects, **ladder)


def _tables(
    table: str | None,
    version: int | None,
    against: str | None,
    model: list[str] | None,
    **scan: str | None,
) -> list[Searcher]:
    """Return the tables to search; the one to compare with is first."""
    from pipeline.search.search import Searcher

    if table is None:
        if against is not None or version is not None:
            raise ConfigError("--against and --version are about a TABLE; name it")
        return []
    if model is not None and (len(model) > 1 or against is not None):
        raise ConfigError("--model is the new place of the model of one TABLE; leave it out for two")
    place = None if model is None else model[0]
    places = [(table, version)]
    if against is not None:
        name, at, number = against.rpartition("@")
        places.insert(0, (name or table, int(number)) if at and number.isdigit() else (against, None))
    return [Searcher(name, version=which, model=place, **scan) for name, which in places]


def _models(table: str | None, names: list[str] | None, settings: list[str] | None) -> list[Subject]:
    """Return the models to evaluate, loaded; none with a table."""
    from actors.encoders import load_encoder
    from pipeline.evaluate.texts import Subject

    if table is not None:
        if settings:
            raise ConfigError("--set is for a model by --model; a TABLE has its settings")
        return []
    jobs = [load_job(None, settings, source="unused", table="unused", model=name) for name in names or ()]
    return [Subject(job.encoder.model, load_encoder(job.encoder.settings())) for job in jobs]


def _finish(evaluated: Evaluated, out: str | None, *, json: bool) -> None:
    result = evaluated.result()
    if out is not None:
        evaluated.write(out, result)
    if json:
        output.as_json(result)
    else:
        _print(result)


def _print(result: Evaluation) -> None:
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    console = output.console()
    items = {"sts": "pairs", "negation": "triplets", "alignment": "pairs"}.get(result.ability, "queries")
    console.print(f"{result.of}: {result.ability} of {result.items:,} {items}")
    measures = [result.main, *(name for name in result.rows[0].scores if name != result.main)]
    compared = any(row.differences for row in result.rows)
    sized = any(row.bytes_per_vector is not None for row in result.rows)
    table = RichTable(
        Column("", no_wrap=True),
        *(Column(name, no_wrap=True) for name in ("task",) if any(row.task for row in result.rows)),
        *(Column(name, justify="right", no_wrap=True) for name in measures),
        *(Column("bytes", justify="right", no_wrap=True) for _ in range(sized)),
        *(Column(f"{result.main}, difference to the first row", no_wrap=True) for _ in range(compared)),
        box=box.SIMPLE,
    )
    for row in result.rows:
        cells = [row.label, *([row.task or ""] if any(each.task for each in result.rows) else [])]
        cells += [
            _interval(row.scores[name]) if name == result.main else f"{row.scores[name].value:.4f}" for name in measures
        ]
        cells += [f"{row.bytes_per_vector:,.0f}"] if row.bytes_per_vector is not None else []
        cells += [_difference(row.differences.get(result.main))] if compared else []
        table.add_row(*cells)
    console.print(table)


def _interval(score: Interval) -> str:
    return f"{score.value:.4f} ({score.low:.4f} to {score.high:.4f})"


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f}), p {found.p:.4f}"


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str | None) -> list[int] | None:
    words = _words(text)
    if words is not None and not all(word.isdigit() for word in words):
        raise ConfigError(f"--dims {text!r} must be whole numbers with commas between them, as in 384,128")
    return None if words is None else [int(word) for word in words]
