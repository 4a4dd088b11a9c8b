"""Content hash of a row: a refresh reuses the vector if the hash is unchanged.

Used by the reader. blake2b of 16 bytes, as 32 hex digits, of the bytes of the content; those of a text are UTF-8. Task and
modality are part of the hash, so the same bytes with another one never have the same hash. Reads the Arrow buffer directly, without a Python string per row.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_DIGEST_BYTES = 16


def _salt(task: str | None) -> bytes:
    return b"" if task is None else blake2b(task.encode(), digest_size=_DIGEST_BYTES).digest()


def content_hashes(
    content: pa.StringArray | pa.BinaryArray | pa.StructArray,
    tasks: pa.StringArray | None = None,
    modality: bytes = b"",
) -> pa.StringArray:
    """Return the hash of each content, in hex.

    Args:
        content: `string` or `binary`, without nulls, or `actors.inputs.PAGE_CONTENT`, whose texts have no salt.
        tasks: One per row, or None; null means the run's own task.
        modality: Salt of the modality, at most 16 bytes; texts have none.
    """
    count = len(content)
    if count == 0:
        return pa.array([], pa.string())
    if pa.types.is_struct(content.type):
        pictures = pc.struct_field(content, 1)
        of_texts = content_hashes(pc.fill_null(pc.struct_field(content, 0), ""), tasks)
        of_pictures = content_hashes(pc.fill_null(pictures, b""), tasks, modality)
        return pc.if_else(pictures.is_valid(), of_pictures, of_texts)
    _, offset_buffer, data_buffer = content.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[content.offset : content.offset + count + 1].tolist()
    data = memoryview(data_buffer) if data_buffer is not None else memoryview(b"")
    spans = pairwise(offsets)
    if tasks is None:
        digests = [
            blake2b(data[start:stop], digest_size=_DIGEST_BYTES, person=modality).digest() for start, stop in spans
        ]
    else:
        names = tasks.to_pylist()
        salts = {name: _salt(name) for name in set(names)}
        digests = [
            blake2b(data[start:stop], digest_size=_DIGEST_BYTES, salt=salts[name], person=modality).digest()
            for (start, stop), name in zip(spans, names, strict=True)
        ]
    width = 2 * _DIGEST_BYTES
    hex_offsets = np.arange(0, width * count + 1, width, dtype=np.int32)
    digits = b"".join(digests).hex().encode()
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(hex_offsets), pa.py_buffer(digits)])
