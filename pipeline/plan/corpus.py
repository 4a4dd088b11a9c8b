"""Listing of a corpus, and the check that its files have what the job names.

Called by every command that reads a source. The corpus is listed once. Footers are read by threads: the work is waiting
for a store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from actors import storage
from actors.encoders.preprocessor import chosen
from actors.encoders.spec import ModelSpec
from actors.errors import ConfigError, InvariantBroken
from actors.images.settings import PictureSettings
from actors.images.workers import need_libraries
from actors.schema import PAGE, Shard
from actors.source.code_parts import need_grammars
from actors.source.formats import common_format, open_format
from actors.source.formats.code import only_code
from actors.source.formats.dialects import DialectUse, settle
from actors.source.lakes import refuse_lakes
from actors.source.pictures import Pictures
from actors.source.read_unit import SourceSpec, check_source, corpus_root
from actors.storage.content_tags import with_tags
from actors.storage.listed import Listing
from actors.storage.own_table import own_file_read
from actors.unit.table_files import data_folder
from pipeline.job.config import Job

_DOCUMENTS = ("text", "pages", "code")  # formats whose files are documents, as people name them


@dataclass(frozen=True, slots=True)
class Survey:
    """A corpus as it is today.

    Attributes:
        source: What the readers need to know.
        keep_schema: The kept columns as they are stored.
        dialects: How delimited shards are written, and how many are written so.
    """

    shards: tuple[Shard, ...]
    source: SourceSpec
    keep_schema: pa.Schema
    dialects: tuple[DialectUse, ...] = ()


def list_corpus(job: Job) -> Listing:
    """The shards of a job's source, in order, and what is left out of it. Nothing is opened.

    Raises:
        ConfigError: no file matches, or one of the table's own does, or the name of one is not UTF-8.
        StorageError: a folder could not be listed, or a link not be followed; it is named.
    """
    uri = storage.absolute(job.source.uri)
    # A slash at the end of a glob means folders; `absolute` takes it off.
    named, is_document = f"{uri}/" if job.source.uri.endswith("/") else uri, _document_endings(job.source.format)
    listing = storage.glob(named, is_document)
    if job.source.format == "code":
        need_grammars()
        listing = only_code(listing, uri, corpus_root(uri, listing.shards))
    shards = listing.shards
    if not shards:
        raise _nothing_matches(job.source.uri, uri, listing)
    if unnamed := next(
        (shard.path for shard in shards if shard.path.encode(errors="ignore").decode() != shard.path), None
    ):
        raise ConfigError(
            f"the name {unnamed!r} has bytes that are not UTF-8, so that no row can say where it is from; rename the file "
            f"or its folder, or narrow source.uri"
        )
    own = data_folder(storage.absolute(job.table.uri), "")
    inside = next((shard.path for shard in shards if shard.path.startswith(own)), None)
    if inside := inside or own_file_read(named, storage.absolute(job.table.uri), is_document):
        # Each refresh would embed the table into itself, and a vacuum take what it does not know.
        raise ConfigError(
            f"source.uri {job.source.uri!r} matches {inside!r}, which lies where the table keeps its own files: narrow "
            f"source.uri, as by the ending of its files, or give table.uri a place outside of it"
        )
    refuse_lakes(job.source.uri, corpus_root(uri, shards), shards, own=job.table.uri)
    return replace(listing, shards=with_tags(shards))


def _document_endings(source_format: str) -> Callable[[str], bool]:
    """Return a test for paths of texts, pictures and PDFs in a source of this format."""

    def by_ending(path: str) -> bool:
        try:
            return open_format("auto", path).name in _DOCUMENTS
        except ConfigError:
            return False

    return by_ending if source_format == "auto" else lambda _: source_format in _DOCUMENTS


def _nothing_matches(written: str, uri: str, listing: Listing) -> ConfigError:
    if listing.left_out:
        left = "; ".join(each.sentence() for each in listing.left_out)
        return ConfigError(
            f"source.uri {written!r} matches no file that is read (it means {uri!r}). Left out: {left}. Rename what is "
            f"meant, or spell such a name in source.uri, as in docs/_posts/*.md"
        )
    braces = ""
    if "{" in uri or "," in uri:
        braces = "; {a,b} and lists with commas are no patterns here, but *, ?, [...] and ** are"
    return ConfigError(
        f"source.uri {written!r} matches no file (it means {uri!r}); check the path and the glob{braces}"
    )


def source_format(job: Job, shards: Iterable[Shard]) -> str:
    """Return the name of the format of a job's files.

    Raises:
        ConfigError: they have several, or the job names an unknown one.
    """
    return common_format(job.source.format, (shard.path for shard in shards)).name


def kept_columns(job: Job, format_name: str) -> dict[str, str]:
    """Return the name in the table of each column that is kept from a source of this format.

    A table of PDFs has the number of each page, and the job need not ask for that.
    """
    return {PAGE: PAGE, **job.source.kept} if format_name == "pages" else job.source.kept


def model_for(job: Job, shards: Iterable[Shard], model: ModelSpec) -> ModelSpec:
    """Return the model as a source needs it: the same for texts, and one that sees for pictures and PDFs.

    Raises:
        ConfigError: the source has pictures, and the model takes texts only; or a column of pictures is named, and the
            files are pictures themselves; or a setting of pictures is given for texts; or Pillow or pypdfium2 is missing.
    """
    image, is_pages = job.source.image, source_format(job, shards) == "pages"
    if image is not None and is_pages:
        raise ConfigError(
            f"source.image names the column {image!r}, and source.uri {job.source.uri!r} matches files that are pictures "
            f"themselves; leave image out"
        )
    if image is None and not is_pages:
        if unused := chosen(job.encoder.settings()):
            raise ConfigError(
                f"encoder.{unused[0]} is about pictures, and source.uri {job.source.uri!r} has texts only; leave it out, or "
                "set source.image to a column of pictures, or source.format: pages for files that may be pictures later"
            )
        return model
    try:
        seeing = model.seeing()
    except ConfigError as error:
        found = f"source.image names {image!r}" if image else f"source.uri {job.source.uri!r} has pictures or PDFs"
        raise ConfigError(
            f"{found}, and {error} Set encoder.model to a model that sees, such as jinaai/jina-embeddings-v4, or "
            f"{'leave image out' if image else 'narrow source.uri'}"
        ) from None
    need_libraries()
    return seeing


def pictures_of(job: Job, settings: PictureSettings | None) -> Pictures:
    """Return the settings with which the pictures of a job are read; `settings` are those of its model."""
    if settings is None:
        raise InvariantBroken("pictures are read for a model without settings for them.")
    source = job.source
    fetch = source.fetch if isinstance(source.fetch, bool) else frozenset(source.fetch)
    return Pictures(settings, source.image, source.prefer, fetch, page_text=job.table.keep_text)


def survey(
    job: Job,
    shards: tuple[Shard, ...],
    known: Mapping[str, pa.DataType] | None = None,
    *,
    modality: str,
    settings: PictureSettings | None = None,
    corpus: tuple[Shard, ...] = (),
) -> Survey:
    """Check that the shards have what the job names.

    Args:
        job: What to look for.
        shards: Where.
        known: Types that kept columns have in shards that are not looked at, as the table stores them.
        modality: The content that the model takes.
        settings: Size and reading of pictures, for a model that sees.
        corpus: All shards, where only some are to be read.

    Raises:
        ConfigError: a column is missing or of a wrong type.
        DataError: a shard cannot be read as what it claims to be.
    """
    if job.table.keep_text and modality not in ("text", "page"):
        raise ConfigError(
            f"table.keep_text stores texts, and the model takes {modality}; leave keep_text out of the job"
        )
    dialects: tuple[DialectUse, ...] = ()
    format_name = source_format(job, corpus or shards)
    if shards:
        shards, dialects = settle(shards, format_name, job.source.quote, job.source.escape)
    source = check_source(
        shards,
        root=corpus_root(job.source.uri, shards),
        format=format_name,
        id=job.source.id,
        text=job.source.text,
        keep=kept_columns(job, format_name),
        task=job.source.task_column,
        unique_ids=job.source.unique_ids,
        folders_of=(corpus or shards) if job.source.hive else (),
        known=known,
        modality=modality,
        pictures=pictures_of(job, settings) if modality == "page" else None,
        needs_text=job.source.needs_text,
    )
    keep_schema = source.kept_schema()
    _check_partitions(job, keep_schema)
    return Survey(shards, source, keep_schema, dialects)


def _check_partitions(job: Job, keep: pa.Schema) -> None:
    for name in job.table.partition_by:
        kind = keep.field(name).type
        if not (
            pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_date(kind)
        ):
            raise ConfigError(
                f"table.partition_by names {name!r}, which is {kind}; a partition is text, a whole number, a boolean "
                f"or a date"
            )
