"""`vectide evaluate`: measures how good a table or a model is."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from actors.errors import ConfigError, DataError, ModelError
from jobs import evaluated as printing
from jobs import output
from jobs.options import AsJson, CacheSize, Version, load_job
from pipeline.scan import DEFAULT_CACHE_SIZE

if TYPE_CHECKING:
    import pyarrow as pa

    from actors.encoders.spec import ModelSpec
    from pipeline.evaluate.result import Evaluated
    from pipeline.evaluate.texts import Subject
    from pipeline.search.search import Searcher


_SOURCES = (
    "--queries with --judgements, --beir, --code, --sts, --negation, --alignment, --parallel, --needle or --tasks"
)


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
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Documents in Parquet, `id` and `text`: for the row of BM25, or to embed by --model."
        ),
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(metavar="URI", help="A checkout: the documentation of its functions shall find them, by --model."),
    ] = None,
    split: Annotated[str, typer.Option(help="The judgements of --beir to use: `qrels/SPLIT.tsv`.")] = "test",
    sts: Annotated[
        str | None, typer.Option(metavar="URI", help="A Parquet file: `sentence1`, `sentence2`, `score`.")
    ] = None,
    negation: Annotated[
        str | None, typer.Option(metavar="URI", help="A Parquet file: `anchor`, `entailment`, `negative`.")
    ] = None,
    alignment: Annotated[str | None, typer.Option(metavar="URI", help="A Parquet file: `text`, `image`.")] = None,
    parallel: Annotated[
        str | None, typer.Option(metavar="URI", help="A Parquet file with a column of texts for each language.")
    ] = None,
    needle: Annotated[
        str | None,
        typer.Option(metavar="URI", help="A Parquet file with a column `text`: the hay of long documents."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A task or a benchmark of mteb, as in 'MTEB(eng, v2)'; more by more --tasks."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print texts, tokens, time and price of --tasks, and run nothing.")
    ] = False,
    prefetch: Annotated[
        bool, typer.Option("--prefetch", help="Download the data of --tasks into the cache of Hugging Face, no more.")
    ] = False,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1, help="Rate for --dry-run; default: measured on this machine.")
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(min=0, help="Price of the encoders, for --dry-run.")] = None,
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
    version: Version = None,
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
    chunking: Annotated[
        str | None,
        typer.Option(metavar="MODE,MODE", help="Embed by --model with each mode of chunking, as in split,late."),
    ] = None,
    address: Annotated[str | None, typer.Option(help="Scan on this Ray cluster; queries are encoded here.")] = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    out: Annotated[
        str | None,
        typer.Option(metavar="URI", help="A folder for the result and its values; with --tasks for embeddings too."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Measure how good a table or a model is, with 95 % intervals: by judged queries, files of texts, or tasks of mteb."""
    if (queries is None) != (judgements is None):
        raise ConfigError("--queries and --judgements go together: the file of queries and the file of judgements")
    files = {"queries": queries, "beir": beir, "code": code, "sts": sts, "negation": negation, "alignment": alignment}
    files |= {"parallel": parallel, "needle": needle}
    given = [name for name, value in {**files, "tasks": tasks}.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(f"give one of {_SOURCES}, not {len(given)}")
    if tasks is None and (dry_run or prefetch):
        raise ConfigError("--dry-run and --prefetch are for --tasks; name some")
    if (corpus is not None or chunking is not None) and given[0] not in {"queries", "beir"}:
        raise ConfigError("--corpus and --chunking are for judged queries, by --queries and --judgements or --beir")
    if table is not None and chunking is not None:
        raise ConfigError("--chunking is for a corpus that --model embeds; a TABLE has its chunks")
    if table is not None and settings:
        raise ConfigError("--set is for a --model; a TABLE has its settings")
    if not dry_run and (tokens_per_second is not None or price_per_hour is not None):
        raise ConfigError("--tokens-per-second and --price-per-hour are for --dry-run, which runs nothing; add it")
    if dry_run and (prefetch or table is not None or (model is not None and len(model) > 1)):
        raise ConfigError("--dry-run takes --tasks and at most one --model, and neither a TABLE nor --prefetch")
    if beir is None and split != "test":
        raise ConfigError("--split names judgements of --beir; leave it out, or name the folder by --beir")
    if table is None and len(set(model or ())) < len(model or ()):
        raise ConfigError(f"--model names {model} with one of them twice; name different models, or one")
    if out is not None:
        from pipeline.search.questions import check_folder

        check_folder(out)
    if tasks is not None:
        if dims is not None or precision is not None or against is not None:
            raise ConfigError(
                "--tasks takes no --dims, --precision and --against; give --set encoder.dim=N, or a second --model"
            )
        if prefetch:
            _prefetch(tasks)
        elif dry_run:
            rates = {"tokens_per_s": tokens_per_second, "price_per_hour": price_per_hour}
            _dry_run(tasks, model[0] if model else None, settings, rates, json=json)
        else:
            searched = _tables(table, version, None, model, address=address, cache_size=cache_size)
            _judge(tasks, searched, None if table else model, settings, out, json=json)
        return
    tables = _tables(table, version, against, model, address=address, cache_size=cache_size)
    ladder: _Ladder = {"dims": _numbers(dims), "precisions": _words(precision, "--precision")}
    if code is not None:
        from pipeline.evaluate.code import judged_code, with_split_names
        from pipeline.evaluate.table import evaluate_tables

        if table is not None or not model or out is None:
            raise ConfigError(
                "--code embeds functions without their documentation, so it takes a --model and no TABLE, and --out, a folder "
                "for the vectors"
            )
        judged, documents = judged_code(code)
        compared = _embedded(model, documents, out, settings, None, ladder=ladder, code=True)
        evaluated = evaluate_tables(compared, judged, with_split_names(documents), **ladder)
    elif given[0] in ("queries", "beir"):
        from pipeline.evaluate.beir import read_beir, read_beir_corpus
        from pipeline.evaluate.table import evaluate_tables, named
        from pipeline.quality.judged import read_corpus, read_judged

        options = ("--queries", "--judgements")
        judged = (
            read_beir(beir, split) if beir is not None else read_judged(str(queries), str(judgements), options=options)
        )
        documents = None if corpus is None else read_corpus(corpus, "--corpus")
        if documents is None and beir is not None:
            documents = read_beir_corpus(beir)
        compared = [named(each) for each in tables]
        if not compared:
            need = _need_embedding(given[0], model, documents, out)
            judged.count_present([need[1]["id"]], "the corpus")
            compared = _embedded(*need, settings, chunking, ladder=ladder)
        evaluated = evaluate_tables(compared, judged, documents, **ladder)
    else:
        evaluated = _texts(given[0], str(files[given[0]]), tables, _models(table, model, settings), ladder)
    _finish(evaluated, out, json=json)
    for searcher in tables:
        if searcher.cache_problem is not None:
            print(f"note: {searcher.cache_problem}", file=sys.stderr)


def _need_embedding(
    source: str, models: list[str] | None, corpus: pa.Table | None, out: str | None
) -> tuple[list[str], pa.Table, str]:
    """Return what an embedding of the documents needs, all of which must be there."""
    if not models:
        raise ConfigError(
            f"--{source} needs the TABLE to search (`vectide backfill` makes one of the documents), or a --model to embed them"
        )
    if corpus is None:
        missing = "corpus.jsonl in the folder of --beir" if source == "beir" else "the documents by --corpus"
        raise ConfigError(f"--{source} with --model embeds the documents, and there are none: it needs {missing}")
    if out is None:
        raise ConfigError("--model embeds the documents, which needs --out, a folder for them")
    return models, corpus, out


def _embedded(
    models: list[str],
    corpus: pa.Table,
    out: str,
    settings: list[str] | None,
    chunking: str | None,
    *,
    ladder: _Ladder,
    code: bool = False,
) -> list[tuple[str, Searcher]]:
    """Return tables of a corpus, with their names."""
    from jobs.progress import reporter
    from pipeline.evaluate.table import embedded_tables

    modes = _words(chunking, "--chunking") or ()
    with reporter() as progress:
        return embedded_tables(
            models, corpus, out, progress, settings=settings or (), chunkings=modes, code=code, **ladder
        )


def _prefetch(names: list[str]) -> None:
    tasks = _chosen(names)
    from pipeline.evaluate.tasks import prefetch

    failed = prefetch(tasks)
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    if failed:
        raise DataError(
            f"{len(failed)} tasks could not be downloaded; run the same command again to try only what is missing"
        )
    print(f"the data of {len(tasks):,} tasks is in the cache of Hugging Face; copy it to the machine that runs them")


def _dry_run(
    names: list[str], model: str | None, settings: list[str] | None, rates: dict[str, float | None], *, json: bool
) -> None:
    tasks = _chosen(names)
    from pipeline.evaluate.tasks import costs, rate

    spec, problem = _described(model, settings)
    basis = "given"
    if rates["tokens_per_s"] is None and spec is not None:
        rates["tokens_per_s"], basis = rate(spec, tasks)
    found = costs(tasks, None if spec is None else spec.max_tokens, **rates)
    if json:
        output.as_json(found)
        return
    tokens = rates["tokens_per_s"]
    sentence = f"{tokens:,.0f} tokens/s ({basis})" if tokens else "no rate: give --model or --tokens-per-second"
    if problem is not None:
        sentence = f"{problem}: texts are not cut. {sentence}"
    printing.print_costs(found, sentence)


def _described(model: str | None, settings: list[str] | None) -> tuple[ModelSpec | None, str | None]:
    """Return the model, or why there is none: a dry run needs none if its rate is given."""
    from pipeline.run.context import describe_model
    from pipeline.run.routing import with_task

    if model is None:
        return None, "no model"
    try:
        return describe_model(with_task(load_job(None, settings, source="unused", table="unused", model=model))), None
    except ModelError:
        return None, f"the model {model!r} is not on this machine"


def _judge(
    names: list[str],
    tables: list[Searcher],
    models: list[str] | None,
    settings: list[str] | None,
    out: str | None,
    *,
    json: bool,
) -> None:
    from jobs.progress import reporter

    if not tables and not models:
        raise ConfigError("--tasks needs a model by --model, or a TABLE for tasks of retrieval")
    if models is not None and len(models) > 2:
        raise ConfigError(f"--model is given {len(models)} times; compare two at a time, the results are kept")
    if out is None:
        raise ConfigError("--tasks needs --out, a folder for results and embeddings; the same command resumes there")
    tasks = _chosen(names)
    from pipeline.evaluate.judge import judge

    with reporter() as progress:
        result = judge(
            tasks, out, progress, models=models or (), settings=settings or (), table=tables[0] if tables else None
        )
    show = output.as_json if json else printing.print_judgement
    show(result)


def _chosen(names: list[str]) -> list[Any]:
    """Return the tasks of these names."""
    if find_spec("mteb") is None:
        raise ConfigError("--tasks needs the package mteb; install it with: pip install 'vectide[evaluate]'")
    from pipeline.evaluate.tasks import choose

    return choose([name for name in names if name.strip()])


class _Ladder(TypedDict):
    dims: list[int] | None
    precisions: list[str] | None


def _texts(ability: str, file: str, tables: list[Searcher], models: list[Subject], ladder: _Ladder) -> Evaluated:
    from pipeline.evaluate.needle import evaluate_needle
    from pipeline.evaluate.parallel import evaluate_parallel
    from pipeline.evaluate.texts import Subject, evaluate_texts

    subjects = [Subject(f"{each.url}, version {each.version}", each.encoder) for each in tables] + models
    if not subjects:
        raise ConfigError(f"--{ability} needs a TABLE, whose model is evaluated, or a model by --model")
    if ability == "parallel":
        return evaluate_parallel(file, subjects, **ladder)
    if ability == "needle":
        return evaluate_needle(file, subjects, **ladder)
    return evaluate_texts(ability, file, subjects, **ladder)


def _tables(
    table: str | None,
    version: int | None,
    against: str | None,
    model: list[str] | None,
    *,
    address: str | None,
    cache_size: str,
) -> list[Searcher]:
    """Return the tables to search; the one to compare with is first."""
    from pipeline.search.search import Searcher

    if table is None:
        if against is not None or version is not None or address is not None or cache_size != DEFAULT_CACHE_SIZE:
            raise ConfigError("--against, --version, --address and --cache-size are about a TABLE; name it")
        return []
    if model is not None and (len(model) > 1 or against is not None):
        raise ConfigError("--model is the new place of the model of one TABLE; leave it out for two")
    place = None if model is None else model[0]
    places = [(table, version)]
    if against is not None:
        name, at, number = against.rpartition("@")
        places.insert(0, (name or table, int(number)) if at and number.isdigit() else (against, None))
    return [
        Searcher(name, version=which, model=place, address=address, cache_size=cache_size) for name, which in places
    ]


def _models(table: str | None, names: list[str] | None, settings: list[str] | None) -> list[Subject]:
    """Return the models to evaluate, loaded; none with a table."""
    from actors.encoders import load_encoder
    from pipeline.evaluate.texts import Subject
    from pipeline.run.routing import with_task

    if table is not None:
        return []
    jobs = [with_task(load_job(None, settings, source="unused", table="unused", model=name)) for name in names or ()]
    return [Subject(job.encoder.model, load_encoder(job.encoder.settings())) for job in jobs]


def _finish(evaluated: Evaluated, out: str | None, *, json: bool) -> None:
    result = evaluated.result()
    if out is not None:
        evaluated.write(out, result)
    show = output.as_json if json else printing.print_evaluation
    show(result)


def _words(text: str | None, option: str) -> list[str] | None:
    words = None if text is None else [*dict.fromkeys(word.strip() for word in text.split(",") if word.strip())]
    if words == []:
        raise ConfigError(f"{option} {text!r} names nothing; leave it out, or give what to compare")
    return words


def _numbers(text: str | None) -> list[int] | None:
    words = _words(text, "--dims")
    if words is not None and not all(word.isdigit() for word in words):
        raise ConfigError(f"--dims {text!r} must be whole numbers with commas between them, as in 384,128")
    return None if words is None else [int(word) for word in words]
