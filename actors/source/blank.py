"""Finds blank texts: empty ones, and those of invisible characters only.

Used by the reader. White space, control and format characters (Unicode categories Cc, Cf and Z) are invisible. So are
Unicode's other default ignorable characters: fillers, joiners and selectors. A combining mark is visible, and so is an
emoji sequence with joiners. Most texts cost one byte: a text is matched only if its first byte can begin an invisible
character.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# The code points are those of Unicode's Default_Ignorable_Code_Point that are in none of the categories.
_CLASS = (
    r"\s\p{Z}\p{Cc}\p{Cf}"
    r"\x{034F}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{180B}-\x{180F}\x{2065}\x{3164}\x{FE00}-\x{FE0F}\x{FFA0}"
    r"\x{FFF0}-\x{FFF8}\x{E0000}-\x{E0FFF}"
)
_BLANK = rf"\A[{_CLASS}]*\z"

# First bytes of such characters in UTF-8. A test covers every character.
_FIRST_BYTES = np.zeros(256, dtype=bool)
_FIRST_BYTES[[*range(0x21), 0x7F, 0xC2, 0xCD, 0xD8, 0xDB, 0xDC, 0xE0, 0xE1, 0xE2, 0xE3, 0xEF, 0xF0, 0xF3]] = True


def blank_texts(texts: pa.StringArray) -> dict[int, tuple[str, str]]:
    """Return reason and error of each blank text, by index."""
    error = "the text is empty, or only white space and invisible characters"
    return dict.fromkeys(blank_rows(texts).tolist(), ("empty_text", error))


def blank_pages(pages: pa.StructArray) -> dict[int, tuple[str, str]]:
    """Return reason and error of each page without a picture whose text is blank or null, by index."""
    rows = np.flatnonzero(pages.field("picture").is_null().to_numpy(zero_copy_only=False))
    texts = pc.fill_null(pages.field("text"), "").take(pa.array(rows))
    return {int(rows[place]): found for place, found in blank_texts(texts).items()}


def blank_rows(texts: pa.StringArray) -> npt.NDArray[np.int64]:
    """Return the indices of the blank texts.

    Args:
        texts: Valid UTF-8 without nulls.
    """
    if len(texts) == 0:
        return np.empty(0, dtype=np.int64)
    _, offsets_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    starts, empty = offsets[:-1], offsets[1:] == offsets[:-1]
    maybe_blank = empty.copy()
    if not empty.all():
        data = np.frombuffer(data_buffer, dtype=np.uint8)
        maybe_blank |= _FIRST_BYTES[data[np.where(empty, 0, starts)]]
    candidates = np.flatnonzero(maybe_blank)
    if len(candidates) == 0:
        return candidates
    is_blank = pc.match_substring_regex(texts.take(pa.array(candidates)), _BLANK)
    rows: npt.NDArray[np.int64] = candidates[is_blank.to_numpy(zero_copy_only=False)]
    return rows
