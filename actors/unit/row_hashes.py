"""64-bit hashes of texts and of rows, and the digest of the rows of a file.

Hashes of texts find repeated ids. Hashes of rows compare the files of two versions. The writer puts the digest of each
file into the receipt: it does not depend on the order of rows or on their distribution over files, so it tells whether
another tool changed rows when the files of an earlier version no longer exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Hashes = npt.NDArray[np.uint64]

# Text that a thread hashes at once. Hashing takes some 40 bytes of memory for each byte of text.
_TEXT_BYTES = 128 << 10
_VECTOR_VALUES = 64 << 10  # vector elements hashed at once, so that they stay in the processor's cache
_SAMPLE_ROWS = 1024
_BASE = _ODD = np.uint64(0x9E3779B97F4A7C15)
_ROW = np.uint64(0x2545F4914F6CDD1D)
_NULL = np.uint64(0x9FB21C651E98DF25)


def hash_strings(column: pa.ChunkedArray) -> Hashes:
    """Return a 64-bit hash of each text, uint64 [rows], without a Python object a row.

    A hash is a polynomial in the bytes of the text (mod 2**64, with an odd base), mixed at the end. It does not resist an
    adversary, so texts with equal hashes must be compared.
    """
    hashes = [_hash_chunk(chunk.cast(pa.large_string())) for chunk in column.chunks if len(chunk)]
    return np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64)


def _hash_chunk(chunk: pa.Array) -> Hashes:
    _, offsets_buffer, data = chunk.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    raw = np.frombuffer(data or b"", dtype=np.uint8)
    hashes = np.empty(len(chunk), dtype=np.uint64)
    start = 0
    while start < len(chunk):
        end = int(np.searchsorted(offsets, offsets[start] + _TEXT_BYTES, side="right")) - 1
        stop = min(max(end, start + 1), len(chunk))
        terms = raw[offsets[start] : offsets[stop]].astype(np.uint64)
        hashes[start:stop] = _hash_sequences(terms, np.diff(offsets[start : stop + 1]))
        start = stop
    return hashes


def _hash_sequences(terms: Hashes, lengths: npt.NDArray[np.int64]) -> Hashes:
    """Return a hash of each sequence of terms, uint64 [sequences]; the sequences follow each other in `terms`."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    longest = int(lengths.max(initial=0))
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.concatenate([[np.uint64(1)], np.full(longest, _BASE)]), dtype=np.uint64)
        if len(terms) == longest * len(lengths):  # all of one length: the same sums, faster
            return _mixed((terms.reshape(len(lengths), longest) + np.uint64(1)) @ powers[:longest])
        within = np.arange(len(terms), dtype=np.int64) - np.repeat(starts, lengths)
        weighted = (terms + np.uint64(1)) * powers[within]
        running = np.concatenate([[np.uint64(0)], np.cumsum(weighted, dtype=np.uint64)])
        return _mixed(running[ends] - running[starts])


def _mixed(hashes: Hashes) -> Hashes:
    with np.errstate(over="ignore"):
        mixed: Hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        return mixed ^ (mixed >> np.uint64(33))


def row_hashes(rows: pa.Table) -> Hashes:
    """Return a hash of all columns of each row, uint64 [rows].

    The hash does not depend on the order of columns, nor on the width of a number type or the encoding of a text column.
    A null counts as a column that the row lacks: a column that a table gained later leaves the hashes as they were.
    """
    hashes: Hashes = np.full(rows.num_rows, _ROW, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for name in rows.column_names:
            hashes += _named(name, _column_hashes(rows[name]), pc.is_null(rows[name]).to_numpy())
    return _mixed(hashes)


def _named(name: str, hashes: Hashes, nulls: npt.NDArray[np.bool_]) -> Hashes:
    """Return the part of a column in the hash of its rows: 0 where the value is null."""
    seed = np.uint64(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))
    with np.errstate(over="ignore"):
        part = _mixed((hashes + np.uint64(1)) * _ODD ^ seed)
    part[nulls] = 0
    return part


def _column_hashes(column: pa.ChunkedArray) -> Hashes:
    hashes = [_array_hashes(_encoded(chunk)) for chunk in column.chunks if len(chunk)]
    return np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64)


def _encoded(chunk: pa.Array) -> pa.Array:
    """Return texts with few distinct values as a dictionary, so that each is hashed once."""
    sample = chunk.slice(0, _SAMPLE_ROWS)
    if not (pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type)):
        return chunk
    return chunk.dictionary_encode() if len(sample.unique()) <= len(sample) // 8 else chunk


def _array_hashes(array: pa.Array) -> Hashes:
    """Return a hash of each value, uint64 [len(array)]; what a null gets has no meaning."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _array_hashes(array.storage)
    if pa.types.is_dictionary(kind):
        indices = pc.fill_null(array.indices.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        known = _array_hashes(array.dictionary)
        return known[indices] if len(known) else np.zeros(len(array), dtype=np.uint64)
    if pa.types.is_struct(kind):
        return row_hashes(pa.table(array.flatten(), names=[kind.field(index).name for index in range(kind.num_fields)]))
    if pa.types.is_map(kind):
        return _array_hashes(array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))))
    if pa.types.is_nested(kind):
        return _list_hashes(array)
    if pa.types.is_timestamp(kind):
        return _number_hashes(array.cast(pa.timestamp("us", kind.tz), safe=False).view(pa.int64()))
    if pa.types.is_date(kind):
        return _number_hashes(array.cast(pa.date32()).view(pa.int32()))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return _number_hashes(array)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _hash_chunk(array.cast(pa.large_binary()))
    return _hash_chunk(array.cast(pa.large_string()))


def _number_hashes(array: pa.Array) -> Hashes:
    """Return the bits of each number as a float64 or an int64, mixed."""
    kind = array.type
    wide = pa.float64() if pa.types.is_floating(kind) else pa.uint64() if kind == pa.uint64() else pa.int64()
    values = pc.fill_null(array.cast(wide), 0).to_numpy(zero_copy_only=False)
    return _mixed(values.view(np.uint64) + _ODD)


def _list_hashes(array: pa.Array) -> Hashes:
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    items = array.flatten()  # of lists that are not null
    if pa.types.is_float32(items.type) and items.null_count == 0:
        return _vector_hashes(items.to_numpy(zero_copy_only=False), lengths)
    nulls = items.is_null().to_numpy(zero_copy_only=False)
    hashes = _array_hashes(items)
    hashes[nulls] = _NULL
    return _hash_sequences(hashes, lengths)


def _vector_hashes(values: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> Hashes:
    """Return a hash of the bits of each vector, uint64 [vectors]; the vectors follow each other in `values`."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    widths = np.unique(lengths)
    if len(widths) <= 1:
        return _matrix_hashes(bits.reshape(len(lengths), int(lengths.max(initial=0))))
    hashes = np.zeros(len(lengths), dtype=np.uint64)
    starts = np.cumsum(lengths) - lengths
    for width in widths:
        mask = lengths == width
        hashes[mask] = _matrix_hashes(bits[starts[mask][:, None] + np.arange(width)])
    return hashes


def _matrix_hashes(bits: npt.NDArray[np.uint32]) -> Hashes:
    """Return a hash of each row, uint64 [rows], of uint32 [rows, width]."""
    count, width = bits.shape
    step = max(_VECTOR_VALUES // max(width, 1), 1)
    hashes: Hashes = np.full(count, width, dtype=np.uint64)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(width, _ODD, dtype=np.uint64), dtype=np.uint64)
        for start in range(0, count, step):
            hashes[start : start + step] += bits[start : start + step].astype(np.uint64) @ powers
    return _mixed(hashes)


def digest_of(rows: pa.Table, partition: Mapping[str, str | None]) -> int:
    """Return the digest of the rows of one file: the sum of their hashes, mod 2**64.

    Args:
        rows: The columns in the file.
        partition: Partition column to value in Delta Lake's text form; None is null.
    """
    if rows.num_rows == 0:
        return 0
    for name, value in partition.items():
        rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
    return int(row_hashes(rows).sum(dtype=np.uint64))


def total(digests: Iterable[int]) -> int:
    """Return the digest of the rows of several files."""
    return sum(digests) % (1 << 64)
