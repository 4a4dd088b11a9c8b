"""The form in which two texts are compared: NFKC, case folding, no zero-width characters, one space for white space.

Plain Python: ASCII, the most common case, takes about a microsecond a text.
"""

from __future__ import annotations

import unicodedata

# Characters that are not seen: zero-width spaces and joiners, marks of direction, the soft hyphen, the byte order mark.
_INVISIBLE = dict.fromkeys(
    [0x00AD, 0x034F, 0x061C, 0x180E, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)]
)


def normalised(text: str) -> str:
    """Return a text as it is compared with others."""
    if not text.isascii():
        folded = unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).casefold()
        # Case folding can undo NFKC, and the second NFKC can give a letter that has another case.
        text = unicodedata.normalize("NFKC", folded).casefold()
    return " ".join(text.lower().split())
