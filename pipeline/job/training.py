"""A training job: its keys and their validation. `vectide train` runs it.

A file with the key `train` is of this kind (`pipeline.job.load`). What depends on the model is checked by
`pipeline.train.run`. No I/O, no torch, no ray.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from actors.errors import ConfigError
from pipeline.job.config import Auto, Place
from pipeline.job.validation import explain, shown
from pipeline.job.values import Columns, Section, Uri, as_list, as_text, check_labels

Method = Literal["lora", "full"]
Stage = Literal["pairs", "triplets", "scored", "joint"]
Loss = Literal["infonce", "cosent", "pearson", "classification", "separation"]
DEFAULT_TASK = "trained"

_LOSS: dict[Stage, Loss] = {"pairs": "infonce", "triplets": "infonce", "scored": "cosent", "joint": "infonce"}
_TASK = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # a name of a folder, too
_Column = Annotated[str, Field(min_length=1)]
_Positive = Annotated[int, Field(ge=1)]
_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _tasks(value: object) -> object:
    """Return the names of `task`; raise ValueError unless it is one, or two that differ."""
    names = as_list(value)
    if not isinstance(names, list | tuple) or not 1 <= len(names) <= 2 or len(set(map(str, names))) != len(names):
        raise ValueError(
            f"must be the name of an adapter, or two names for queries and passages, as in [ask, answer], not {shown(value)}"
        )
    for name in names:
        if not isinstance(name, str) or not _TASK.fullmatch(name):
            raise ValueError(
                f"{shown(name)} is no name of an adapter: use letters, digits, dots, dashes and underscores"
            )
    return names


def _dims(value: object) -> object:
    dims = [value] if type(value) is int else value
    if not isinstance(dims, list | tuple):
        raise ValueError(  # noqa: TRY004 - pydantic makes a sentence of it
            f"must be numbers of dimensions, as in [384, 128], not {shown(dims)}"
        )
    if len(set(map(str, dims))) != len(dims):
        raise ValueError(f"{shown(dims)} has a number of dimensions twice")
    return dims


class HeldOut(Section):
    """Held-out queries that the model is evaluated with while it trains."""

    every_steps: _Positive = Field(default=50, description="Steps from one evaluation to the next.")
    corpus: Uri = Field(description="Parquet file of documents (`id`, `text`).")
    queries: Uri = Field(description="Parquet file of queries (`id`, `text`).")
    judgements: Uri = Field(description="Parquet file of judgements (`query`, `doc`, optionally `relevance`).")
    patience: _Positive = Field(
        default=3, description="Evaluations in a row without a better nDCG@10 after which the training stops."
    )


class Train(Section):
    """Model, and the settings that change the trained weights."""

    model: Annotated[str, BeforeValidator(as_text), Field(min_length=1)] = Field(
        description="Model to start from: an id on the Hugging Face Hub, or the path of a folder that holds one."
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of a model on the Hub; by default its main branch."
    )
    method: Method = Field(
        default="lora",
        description="What is trained: `lora` is an adapter on the frozen model, `full` is the whole model.",
    )
    stage: Stage = Field(
        default="pairs",
        description=(
            "Kind of training: `pairs` (contrastive, in both directions), `triplets` (with hard negatives), `scored` (pairs "
            "with a score), `joint` (dense vectors and late interaction from one pass)."
        ),
    )
    task: Annotated[tuple[str, ...], BeforeValidator(_tasks)] | None = Field(
        default=None,
        description=(
            "Name of the adapter, or two names for one of queries and one of passages, trained together; by default `trained`."
        ),
    )
    start_from: Annotated[tuple[Uri, ...], BeforeValidator(as_list)] | None = Field(
        default=None,
        description=(
            "Adapter to continue from, one for each name of `task`: a PEFT folder, or a task of the model that has its own; "
            "by default new ones are made."
        ),
    )
    rank: _Positive | None = Field(
        default=None, description="Rank of the adapter; by default that of the model's own adapters, else 16."
    )
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Scale of the adapter, as a multiple of 1 / rank; by default that of the model's own adapters, else 2 x rank.",
    )
    batch_rows: Annotated[int, Field(ge=2)] = Field(
        default=1024,
        description="Rows of a step, over all workers; each text is compared with those of all other rows.",
    )
    budget_tokens: _Positive = Field(
        default=16384,
        description="Tokens that go through the model at once; it limits the memory, and changes no result.",
    )
    max_tokens: _Positive | None = Field(
        default=None, description="Tokens after which a text is cut, prompt included; by default the model's limit."
    )
    epochs: _Positive = Field(
        default=1,
        description="Times that the rows are gone through; rows that do not fill a last step of their source are left out of "
        "that time, others each time.",
    )
    max_steps: _Positive | None = Field(
        default=None, description="Steps after which the training ends; by default all of `epochs`."
    )
    learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(
        default=5e-5,
        description="Largest learning rate, reached after the warm-up; it then falls to 0 by a straight line.",
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Share of the steps in which the learning rate rises."
    )
    weight_decay: _Weight = Field(default=0.0, description="Weight decay of AdamW.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Norm to which a larger gradient is scaled."
    )
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=0.05, description="Number that cosines are divided by in a loss."
    )
    margin: _Weight = Field(
        default=0.05, description="Least difference of the cosines of a positive and a negative, in stage `triplets`."
    )
    matryoshka: Annotated[tuple[_Positive, ...], BeforeValidator(_dims)] = Field(
        default=(), description="Numbers of dimensions to which vectors may be cut afterwards, beside all of them."
    )
    gor: _Weight = Field(default=0.0, description="Weight of the regularizer that spreads vectors out (GOR).")
    distill: _Weight = Field(
        default=0.0, description="Weight of the distance to the vectors of a teacher; needs `teacher` of the data."
    )
    detach_dense: bool = Field(
        default=False,
        description="Whether the distance between late and dense scores changes the late ones only, in stage `joint`.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(default=0, description="Seed of all random numbers.")
    checkpoint_steps: _Positive = Field(
        default=50, description="Steps from one checkpoint to the next; a stopped training goes on from the last one."
    )
    evaluate: HeldOut | None = Field(
        default=None, description="Held-out queries to evaluate with while the model trains; by default none."
    )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the adapters: none for method full, else one, or those of the query side and the passage side."""
        return () if self.method == "full" else self.task or (DEFAULT_TASK,)

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.method == "full":
            set_ = [name for name in ("task", "start_from", "rank", "alpha") if getattr(self, name) is not None]
            if set_:
                raise ValueError(
                    f"{set_[0]} is about an adapter, and method full trains none; leave it out, or set method: lora"
                )
        if self.start_from is not None and len(self.start_from) != len(self.tasks):
            raise ValueError(
                f"start_from must name one adapter for each of {', '.join(self.tasks)}, not {len(self.start_from)}; or leave it out"
            )
        if self.detach_dense and self.stage != "joint":
            raise ValueError(f"detach_dense is about late interaction, and stage is {self.stage}; leave it out")
        if self.stage == "joint" and self.method == "full":
            raise ValueError("stage joint trains an adapter and the projection beside it; set method: lora")
        return self


class Texts(Section):
    """Texts of the negatives, by id."""

    uri: Uri = Field(description="Path or URL of the files, or of a Delta table.")
    id: _Column = Field(default="id", description="Column of the ids.")
    text: _Column = Field(default="text", description="Column of the texts.")


class DataSource(Section):
    """Rows to train with. A step takes all of its rows from one source."""

    uri: Uri = Field(
        description="Path or URL of the files, or of a Delta table such as that of `vectide curate`; `${NAME}` is replaced."
    )
    format: Literal["auto", "parquet", "jsonl", "csv"] = Field(
        default="auto", description="File format; `auto` takes the format that the file ending names."
    )
    where: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description=(
            "SQL condition on the rows' columns, such as `lang = 'en'`; by default all rows are taken, of a table of `vectide "
            "curate` the kept ones."
        ),
    )
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=1.0, description="Weight with which a step takes this source, as a multiple of its share of the rows."
    )
    query: _Column = Field(default="query", description="Column of the first side of a pair.")
    passage: _Column = Field(default="passage", description="Column of the second side of a pair.")
    negatives: Uri | None = Field(
        default=None, description="Folder that `vectide mine` wrote for these pairs; by default none."
    )
    negative_columns: Annotated[Columns, Field(min_length=1)] | None = Field(
        default=None,
        description="Columns of negatives, also of lists; by default `negative`, `negatives`, `negative_1` and so on.",
    )
    negatives_per_row: _Positive | None = Field(
        default=None,
        description="Negatives of a row; rows with less get those of other rows; by default the largest number that a row has.",
    )
    texts: Texts | None = Field(
        default=None,
        description="Texts of the ids in `negatives`; by default those that the mined table stores (`table.keep_text`).",
    )
    score: _Column = Field(default="score", description="Column of the score of a pair, for `cosent` and `pearson`.")
    label: _Column | None = Field(
        default=None, description="Column of the class of a row, for `classification` and `separation`."
    )
    teacher: Uri | None = Field(default=None, description="Table of embeddings with a teacher's vectors of the texts.")
    loss: Loss | None = Field(
        default=None,
        description="Loss: `infonce` by default, in stage `scored` `cosent`; sources may have different ones.",
    )

    @model_validator(mode="after")
    def _check(self) -> DataSource:
        sides = [self.query, self.passage, *(self.negative_columns or ())]
        if repeated := next((name for name in sides if sides.count(name) > 1), None):
            raise ValueError(f"{repeated!r} has two uses here; a column is a query, a passage or a negative")
        if self.negatives is not None and self.negative_columns is not None:
            raise ValueError("negatives and negative_columns both give the negatives; name one of the two")
        if self.texts is not None and self.negatives is None:
            raise ValueError(
                "texts gives the texts of mined negatives; name their folder in negatives, or leave it out"
            )
        return self


class Out(Place):
    """Folder of the trained model."""

    uri: Uri = Field(
        description="Path or URL of the folder of the result; `${NAME}` is replaced, and a missing folder is created."
    )
    checkpoint: bool = Field(
        default=False,
        description=(
            "Whether a model of Jina v3 or v4 is written too, with the new adapters in the layout of its publisher; method "
            "`full` always writes the model."
        ),
    )


class TrainingRun(Section):
    """Distribution of the work."""

    address: str = Field(
        default="auto",
        description=(
            "Where to run: `inline` (this process), `local` (Ray on this machine) or the address of a Ray cluster; `auto` "
            "takes the cluster that `RAY_ADDRESS` names, else `local`."
        ),
    )
    workers: _Positive | Auto = Field(
        default="auto",
        description="Number of processes that train; `auto` is one for each GPU of the cluster, else one.",
    )
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | Auto = Field(
        default="auto", description="GPUs of a worker, 0 or 1; `auto` is 1 where the cluster has GPUs, else 0."
    )
    labels: Annotated[dict[str, str], BeforeValidator(check_labels)] | None = Field(
        default=None,
        description="Ray node labels that the machine of a worker must have, as in `run.labels` of a backfill.",
    )

    @model_validator(mode="after")
    def _check(self) -> TrainingRun:
        if self.address == "inline" and self.workers not in ("auto", 1):
            raise ValueError(f"workers is {self.workers}, and address inline is this process; set address: local")
        return self


class Training(Section):
    """One training job file."""

    train: Train
    data: tuple[DataSource, ...] = Field(description="Sources of the rows.")
    out: Out
    run: TrainingRun = TrainingRun()

    @field_validator("data", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        if isinstance(value, dict):
            return [value]
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"must be a list of sources, as in `[{{uri: pairs.jsonl}}]`, not {shown(value)}")
        return value

    @field_validator("data")
    @classmethod
    def _with_loss(cls, data: tuple[DataSource, ...], info: ValidationInfo) -> tuple[DataSource, ...]:
        """Give each source the loss of the stage, if it names none."""
        train: Train | None = info.data.get("train")
        if train is None:  # wrong, and reported
            return data
        return tuple(
            source if source.loss else source.model_copy(update={"loss": _LOSS[train.stage]}) for source in data
        )

    @model_validator(mode="after")
    def _check(self) -> Training:
        for number, source in enumerate(self.data):
            place = f"data.{number}"
            if self.train.stage == "joint" and source.loss != "infonce":
                raise ValueError(f"{place}.loss is {source.loss}, and stage joint has only infonce; leave loss out")
            if source.loss in ("classification", "separation") and source.label is None:
                raise ValueError(
                    f"{place}.loss is {source.loss}, which needs the class of a row: name its column in label"
                )
            if source.loss not in ("classification", "separation") and source.label is not None:
                raise ValueError(
                    f"{place}.label names a class, and loss {source.loss} has none; set loss: classification or separation"
                )
            of_negatives = (source.negatives, source.negative_columns, source.negatives_per_row)
            if source.loss in ("cosent", "pearson", "separation") and any(of_negatives):
                raise ValueError(f"{place} has negatives, which loss {source.loss} does not use; leave them out")
            if source.teacher is not None and not self.train.distill:
                raise ValueError(f"{place}.teacher is used with train.distill only; set its weight, as in distill: 1.0")
        if self.train.distill and not any(source.teacher for source in self.data):
            raise ValueError("train.distill needs the vectors of a teacher: name their table in teacher of the data")
        workers = self.run.workers
        if workers != "auto" and self.train.batch_rows % workers:
            raise ValueError(
                f"train.batch_rows is {self.train.batch_rows}, and {workers} workers cannot share them equally; use a multiple"
            )
        return self


def parse_training(document: object, *, origin: str = "the job file") -> Training:
    """Return the training job that plain data describes.

    Raises:
        ConfigError: a key or value is wrong; see `pipeline.job.config.parse_job`.
    """
    if not isinstance(document, dict):
        raise ConfigError(f"{origin} must hold sections (train, data, out, run), not {type(document).__name__}")
    try:
        return Training.model_validate(document)
    except ValidationError as error:
        raise ConfigError(explain(error, origin, Training, {})) from None
