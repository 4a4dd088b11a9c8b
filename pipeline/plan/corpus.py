"""Listing of a corpus, and the check that its files have what the job names.

Called by every command that reads a source. The corpus is listed once. Footers are read by threads: the work is waiting
for a store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from actors import storage
from actors.errors import ConfigError
from actors.schema import Shard
from actors.source.formats import open_format
from actors.source.formats.dialects import DialectUse, settle
from actors.source.lakes import refuse_lakes
from actors.source.read_unit import SourceSpec, check_source, corpus_root
from actors.storage.content_tags import with_tags
from actors.storage.listed import Listing
from actors.storage.own_table import own_file_read
from actors.unit.table_files import data_folder
from pipeline.job.config import Job


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
        ConfigError: no file matches, or one of the table's own does.
        StorageError: a folder could not be listed, or a link not be followed; it is named.
    """
    uri = storage.absolute(job.source.uri)
    # A slash at the end of a glob means folders; `absolute` takes it off.
    named, is_text = f"{uri}/" if job.source.uri.endswith("/") else uri, _text_endings(job.source.format)
    listing = storage.glob(named, is_text)
    shards = listing.shards
    if not shards:
        raise _nothing_matches(job.source.uri, uri, listing)
    own = data_folder(storage.absolute(job.table.uri), "")
    inside = next((shard.path for shard in shards if shard.path.startswith(own)), None)
    if inside := inside or own_file_read(named, storage.absolute(job.table.uri), is_text):
        # Each refresh would embed the table into itself, and a vacuum take what it does not know.
        raise ConfigError(
            f"source.uri {job.source.uri!r} matches {inside!r}, which lies where the table keeps its own files: narrow "
            f"source.uri, as by the ending of its files, or give table.uri a place outside of it"
        )
    refuse_lakes(job.source.uri, corpus_root(uri, shards), shards, own=job.table.uri)
    return replace(listing, shards=with_tags(shards))


def _text_endings(source_format: str) -> Callable[[str], bool]:
    """Return a test for paths of text documents in a source of this format."""

    def by_ending(path: str) -> bool:
        try:
            return open_format("auto", path).name == "text"
        except ConfigError:
            return False

    return by_ending if source_format == "auto" else lambda _: source_format == "text"


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


def survey(
    job: Job,
    shards: tuple[Shard, ...],
    known: Mapping[str, pa.DataType] | None = None,
    *,
    modality: str,
    corpus: tuple[Shard, ...] = (),
) -> Survey:
    """Check that the shards have what the job names.

    Args:
        job: What to look for.
        shards: Where.
        known: Types that kept columns have in shards that are not looked at, as the table stores them.
        modality: The content that the model takes.
        corpus: All shards, where only some are to be read.

    Raises:
        ConfigError: a column is missing or of a wrong type.
        DataError: a shard cannot be read as what it claims to be.
    """
    if job.table.keep_text and modality != "text":
        raise ConfigError(
            f"table.keep_text stores texts, and the model takes {modality}; leave keep_text out of the job"
        )
    dialects: tuple[DialectUse, ...] = ()
    if shards:
        source_format = open_format(job.source.format, shards[0].path).name
        shards, dialects = settle(shards, source_format, job.source.quote, job.source.escape)
    source = check_source(
        shards,
        root=corpus_root(job.source.uri, shards),
        format=job.source.format,
        id=job.source.id,
        text=job.source.text,
        keep=job.source.kept,
        task=job.source.task_column,
        unique_ids=job.source.unique_ids,
        folders_of=(corpus or shards) if job.source.hive else (),
        known=known,
        modality=modality,
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
