"""Judged queries from source code: what a function is documented to do, and the function without its documentation.

Called by `vectide evaluate --code`. The query is the first sentence of the documentation (a docstring in Python, else the
comment above), if it has some words. The documents are all functions and methods of a checkout, in the file format `code`.
Equal functions are one document, and a sentence that documents several functions is answered by each of them.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from actors import storage
from actors.errors import ConfigError, DataError
from actors.quantities import counted
from actors.schema import QuarantinedRow
from actors.source.code_parts import Part, cut, need_grammars
from actors.source.formats.code import only_code, part_text, read_code
from actors.source.spec import corpus_root
from pipeline.quality.judged import Judged, need_measures

_OPTION = "--code"
_LEAST_WORDS = 4
_MARKS = re.compile(r"^\s*(?:/\*+|\*+/?|//+!?|#+!?|[rRbBuU]?(?:\"\"\"|'''|\"|'))?\s*|\s*(?:\*+/|\"\"\"|'''|[\"'])\s*$")
_SENTENCE = re.compile(r".+?(?:[.!?](?=\s|$)|$)", re.DOTALL)
_TAG = re.compile(r"[@\\](?:brief|summary|description)\s+")


def judged_code(url: str) -> tuple[Judged, pa.Table]:
    """Return queries and judgements, and the documents as `id` and `text`.

    Args:
        url: A folder or glob of source code.

    Raises:
        ConfigError: nothing matches, or tree-sitter or ir-measures is missing.
        DataError: no function has documentation.
        StorageError: the store failed.
    """
    need_measures(_OPTION)
    need_grammars()
    place = storage.absolute(url)
    listing = storage.glob(place, lambda _: True)
    root = corpus_root(url, listing.shards)
    shards = only_code(listing, place, root).shards
    if not shards:
        raise ConfigError(f"{_OPTION} {url!r} matches no file of source code in a language that is known")
    ids: dict[str, str] = {}  # of a function, by its text
    answers: dict[str, dict[str, int]] = {}  # functions, by the sentence
    unread = 0
    for shard in shards:
        data = read_code(shard)
        if isinstance(data, QuarantinedRow):
            unread += 1
            continue
        lines = data.split(b"\n")
        for part in cut(shard.path, data):
            text = _without_doc(lines, part)
            if not part.is_function or not text.strip():
                continue
            name = ids.setdefault(text, f"{shard.path[len(root) :].lstrip('/')}:{part.line}")
            if (sentence := _first_sentence(lines, part)) is not None:
                answers.setdefault(sentence, {})[name] = 1
    if not answers:
        raise DataError(
            f"{_OPTION} {url!r}: of {counted(len(ids), 'function')} none has a docstring or a comment above it that begins with a "
            f"sentence of {_LEAST_WORDS} words; name a checkout that is documented"
        )
    notes = (f"{counted(unread, 'file')} left out: generated, no UTF-8 text, or too large",) if unread else ()
    queries = {str(number): sentence for number, sentence in enumerate(answers)}
    judgements = dict(zip(queries, answers.values(), strict=True))
    documents = pa.table([pa.array(ids.values(), pa.string()), pa.array(ids, pa.string())], ["id", "text"])
    return Judged(queries, judgements, f"{_OPTION}: {url!r}", notes), documents


def with_split_names(documents: pa.Table) -> pa.Table:
    """Return documents with the names in them as words, `readFile` and `read_file` as "read file": for a search by words."""
    texts = pc.replace_substring_regex(documents["text"], r"([a-z0-9])([A-Z])", r"\1 \2")
    return documents.set_column(1, "text", pc.replace_substring(texts, "_", " "))


def _without_doc(lines: list[bytes], part: Part) -> str:
    if part.doc is None:
        return part_text(lines, part)
    first, last = part.doc
    kept = [*lines[part.line - 1 : first - 1], *lines[last : part.end_line]]
    return b"\n".join(kept).decode().rstrip()


def _first_sentence(lines: list[bytes], part: Part) -> str | None:
    """Return the first sentence of the documentation without the marks of comments; None without one."""
    if part.doc is None:
        return None
    first, last = part.doc
    texts = [_MARKS.sub("", line.decode()).strip() for line in lines[first - 1 : last]]
    paragraph = re.split(r"\n\s*\n", "\n".join(texts).strip())[0]
    found = _SENTENCE.match(_TAG.sub("", paragraph))
    sentence = " ".join(found[0].split()) if found else ""
    return sentence if len(re.findall(r"[^\W\d_]{2,}", sentence)) >= _LEAST_WORDS else None
