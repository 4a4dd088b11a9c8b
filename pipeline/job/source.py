"""The section `source` of the job file."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from actors.source.column_names import kept_names
from pipeline.job.values import Columns, Kept, Section, Uri, check_hosts


def _is_none(value: object) -> bool:
    return value is None


def _is_false(value: object) -> bool:
    return value is False


class Files(Section):
    """Files to read, and the columns that every kind of job takes from them."""

    uri: Uri = Field(
        description="Path or URL of the files: one file, a folder or a glob; `${NAME}` is replaced from the environment."
    )
    format: Literal["auto", "parquet", "jsonl", "csv", "text", "pages", "code"] = Field(
        default="auto",
        description=(
            "File format; `auto` takes the format that the file ending names, and all files have the same one; `pages` are "
            "PDFs, pictures and text files together, `code` is source code, cut at its functions."
        ),
    )
    quote: Literal["auto", '"', "'", "none"] = Field(
        default="auto",
        description="Quote character of CSV and TSV fields; `auto` detects it from the first 2 MiB of each file.",
    )
    escape: Literal["auto", "double", "backslash", "none"] = Field(
        default="auto",
        description="How CSV and TSV files write a quote inside a quoted field; `auto` detects it as for `quote`.",
    )
    id: str | None = Field(
        default=None,
        description="Column that holds the id of a row; by default ids are made from the file path and the row position.",
    )
    keep: Kept = Field(
        default=(),
        description=(
            "Columns that are copied into the table unchanged, as a list, or as `{name in the source: name in the table}`; "
            "by default none."
        ),
    )
    unique_ids: bool = Field(
        default=True,
        description="Whether ids are unique: `true` quarantines every later row with the same id, `false` keeps them all.",
    )
    hive: bool = Field(
        default=False,
        description="Whether folders such as `lang=de/` in the paths are read as columns; by default not.",
    )
    verify: Literal["tag", "content"] = Field(
        default="tag",
        description=(
            "How a changed file is recognized: `tag` compares the store's tag, `content` the SHA-256 of the bytes, which "
            "reads the whole source in each run."
        ),
    )

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if self.quote == "none" and self.escape == "double":
            raise ValueError(
                "escape double writes a quote twice inside of quotes, and quote is none; use escape: backslash, none or "
                "auto, or name the quote"
            )
        if len(set(self.keep)) != len(self.keep):
            raise ValueError(f"{list(self.keep)} names a column twice")
        return self

    @property
    def kept(self) -> dict[str, str]:
        """Name in the table of each kept column, by its name in the source."""
        return kept_names(self.keep)


class Source(Files):
    """Files to read and the columns to take from them."""

    text: Columns = Field(
        default=("text",),
        description="Columns to embed; several columns are joined by a blank line into one text.",
    )
    image: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        exclude_if=_is_none,
        description=(
            "Column of pictures to embed: bytes, paths, URLs, base64 or the struct `{bytes, path}`; a row has a picture or "
            "a text."
        ),
    )
    prefer: Literal["text", "image"] | None = Field(
        default=None,
        exclude_if=_is_none,
        description="What is embedded of a row that has a text and a picture; by default such a row is quarantined.",
    )
    fetch: Annotated[bool | tuple[str, ...], BeforeValidator(check_hosts)] = Field(
        default=False,
        exclude_if=_is_false,
        description=(
            "Whether pictures are fetched from http and https URLs: `true` from public addresses, a list of hosts from "
            "these hosts only, private ones too; by default not."
        ),
    )
    task_column: str | None = Field(
        default=None,
        description="Column that holds the model's task for each row; by default every row has `encoder.task`.",
    )

    @model_validator(mode="after")
    def _check(self) -> Source:
        if not self.text:
            raise ValueError("text names no column; name at least one")
        if self.image is None and (self.prefer is not None or self.fetch):
            key = "prefer" if self.prefer is not None else "fetch"
            raise ValueError(f"{key} is about a column of pictures; name it in image, or leave {key} out")
        if self.image is not None and self.image in (*self.text, self.id, self.task_column):
            raise ValueError(f"image names {self.image!r}, which another key names too; a column has one use")
        if len(set(self.text)) != len(self.text):
            raise ValueError(f"{list(self.text)} names a column twice")
        return self

    @property
    def needs_text(self) -> bool:
        """True unless the job names a column of pictures and no columns of texts: then a source may have no texts."""
        return self.image is None or "text" in self.model_fields_set
