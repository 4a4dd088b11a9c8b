"""The content hash: what tells whether a row's vector must be made anew.

Used by the reader. blake2b of 16 bytes, as 32 hex digits, of the UTF-8 text; a task goes in as the salt, so that no
text can be mistaken for another text with a task. Hashed from the Arrow buffer, without a Python string a row.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pyarrow as pa

_DIGEST_BYTES = 16


def _salt(task: str | None) -> bytes:
    return b"" if task is None else blake2b(task.encode(), digest_size=_DIGEST_BYTES).digest()


def content_hashes(texts: pa.StringArray, tasks: pa.StringArray | None = None) -> pa.StringArray:
    """The hash of each text, as hex.

    Args:
        texts: `string` without nulls.
        tasks: One a row, or None; null is the run's own task.
    """
    count = len(texts)
    if count == 0:
        return pa.array([], pa.string())
    _, offset_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[texts.offset : texts.offset + count + 1].tolist()
    data = memoryview(data_buffer) if data_buffer is not None else memoryview(b"")
    spans = pairwise(offsets)
    if tasks is None:
        digests = [blake2b(data[start:stop], digest_size=_DIGEST_BYTES).digest() for start, stop in spans]
    else:
        names = tasks.to_pylist()
        salts = {name: _salt(name) for name in set(names)}
        digests = [
            blake2b(data[start:stop], digest_size=_DIGEST_BYTES, salt=salts[name]).digest()
            for (start, stop), name in zip(spans, names, strict=True)
        ]
    width = 2 * _DIGEST_BYTES
    hex_offsets = np.arange(0, width * count + 1, width, dtype=np.int32)
    digits = b"".join(digests).hex().encode()
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(hex_offsets), pa.py_buffer(digits)])
