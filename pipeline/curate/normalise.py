"""The form in which two texts are compared: NFKC, case folding, no invisible characters, one space for white space.

Plain Python: ASCII, the most common case, takes about a microsecond a text.
"""

from __future__ import annotations

import unicodedata

# Characters that are not seen: control characters, zero-width spaces and joiners, marks of direction, the soft hyphen, the
# byte order mark, fillers, variation selectors, tags. A text of them alone is blank in `actors.source.blank` too.
_INVISIBLE = dict.fromkeys(
    [0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0x200B, 0x2010)]
    + [*range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164, *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0]
    + [*range(0xFFF0, 0xFFFC), *range(0xE0000, 0xE1000)]
    + [code for code in [*range(0x20), *range(0x7F, 0xA0)] if not chr(code).isspace()]
)


def normalised(text: str) -> str:
    """Return a text as it is compared with others."""
    if not text.isascii():
        folded = unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).casefold()
        # Case folding can undo NFKC, and the second NFKC can give a letter that has another case.
        text = unicodedata.normalize("NFKC", folded).casefold()
    text = " ".join(text.lower().split())
    # A text that is not ASCII has lost its control characters.
    return text if text.isprintable() or not text.isascii() else " ".join(text.translate(_INVISIBLE).split())
