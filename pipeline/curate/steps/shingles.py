"""Shingles of texts: their hashes, MinHash signatures, bands, and the Jaccard similarity of two texts.

A shingle is a sequence of n characters or n words of a text; the Jaccard similarity of two texts is the share of their
shingles that both have. All functions take normalised texts, whose words are separated by single spaces, and work on many
texts at a time: numpy hashes 120,000 texts of 500 characters a second, which is 25 times what a loop in Python does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Part = Literal["characters", "words"]

FOUND = 0.99  # least probability that a pair with just the threshold is a candidate
_BASE = np.uint64(0x9E3779B97F4A7C15)  # of polynomials modulo 2**64; odd
_SEED = 1
_CHARACTERS = 1 << 16  # that are hashed at a time: larger arrays take seven times as long, as they do not fit the cache


class Shingles:
    """Shingles of one kind.

    Args:
        part: Parts of a text that are counted.
        n: Number of parts of a shingle.
    """

    def __init__(self, part: Part, n: int) -> None:
        self._words, self._n = part == "words", n

    def counts(self, texts: Sequence[str]) -> Ints:
        """Return the number of shingles of each text, with repetitions; 0 if it is shorter than a shingle."""
        return np.maximum(self._lengths(texts) - self._n + 1, 0)

    def hashes(self, texts: Sequence[str]) -> Hashes:
        """Return the hashes of all shingles, text by text, with repetitions."""
        units = self._units(texts)
        windows = len(units) - self._n + 1
        if windows <= 0:
            return np.empty(0, np.uint64)
        hashes = units[:windows].astype(np.uint64)
        for place in range(1, self._n):
            hashes *= _BASE
            hashes += units[place : windows + place]
        hashes ^= hashes >> np.uint64(32)
        hashes *= np.uint64(0xD6E8FEB86659FD93)
        hashes ^= hashes >> np.uint64(32)
        ends = np.cumsum(self._lengths(texts))
        inside = np.ones(len(units), bool)
        for place in range(1, self._n):
            inside[np.maximum(ends - place, 0)] = False  # a window that starts there ends in another text
        return hashes[inside[:windows]]

    def signatures(self, texts: Sequence[str], permutations: int) -> Bytes:
        """Return MinHash signatures, [texts, permutations]: the lowest byte of the smallest hash of each permutation.

        Two texts agree at a place with the probability of their similarity, and by chance in 1 of 256 other cases. A byte
        is enough for bands of several places, and a signature is an eighth of what bands of 8 bytes would be.

        Args:
            texts: Texts with at least one shingle.
            permutations: Length of a signature.
        """
        import rensa  # an extra

        found, pack = [np.empty((0, permutations), np.uint8)], struct.Struct(f"{permutations}I").pack
        for part in _parts(texts):
            ends = np.cumsum(self.counts(part), dtype=np.uint64)
            offsets = np.concatenate([np.zeros(1, np.uint64), ends])
            digests = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
                self.hashes(part), offsets, permutations, _SEED
            )
            numbers = np.frombuffer(b"".join(pack(*row) for row in digests.to_rows()), np.uint32)
            found.append(numbers.astype(np.uint8).reshape(-1, permutations))
        return np.concatenate(found)

    def similarities(self, left: Sequence[str], right: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the Jaccard similarity of the texts at the same places, each with at least one shingle."""
        found = [np.empty(0)]
        for pairs in _parts(list(zip(left, right, strict=True)), lambda pair: len(pair[0]) + len(pair[1])):
            count, texts = len(pairs), [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
            text = np.repeat(np.arange(2 * count), self.counts(texts)).astype(np.uint64)
            pair, side = text % np.uint64(count), text // np.uint64(count)
            # 15 bits for the pair, 48 of the hash, one for the side: one sort finds copies and what both sides have.
            keys = pair << np.uint64(49) | self.hashes(texts) >> np.uint64(16) << np.uint64(1) | side
            keys.sort()
            keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
            common = keys[1:][keys[1:] ^ keys[:-1] == 1]
            both = np.bincount((common >> np.uint64(49)).astype(np.int64), minlength=count)
            every = np.bincount((keys >> np.uint64(49)).astype(np.int64), minlength=count)
            found.append(both / (every - both))
        return np.concatenate(found)

    def _lengths(self, texts: Iterable[str]) -> Ints:
        lengths = (text.count(" ") + bool(text) if self._words else len(text) for text in texts)
        return np.fromiter(lengths, np.int64)

    def _units(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Return a number for each character or word of all texts."""
        text = " ".join(filter(None, texts)) if self._words else "".join(texts)
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        if not self._words or not len(codes):
            return codes
        codes = codes.astype(np.uint64)
        space = codes == ord(" ")
        starts = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(space) + 1])
        lengths = np.diff(starts, append=len(codes))
        codes[space] = 0
        powers = np.full(lengths.max(), _BASE)
        powers[0] = 1
        np.multiply.accumulate(powers, out=powers)
        codes *= powers[np.arange(len(codes)) - np.repeat(starts, lengths)]
        return np.add.reduceat(codes, starts)


def bands_for(threshold: float, permutations: int) -> tuple[int, int]:
    """Return the number of bands and of places in each: the longest bands that find pairs with just the threshold."""
    for length in range(permutations, 1, -1):
        bands = permutations // length
        if probability(threshold, bands, length) >= FOUND:
            return bands, length
    return permutations, 1


def probability(similarity: float, bands: int, length: int) -> float:
    """Return the probability that two texts agree in all places of a band."""
    return float(1 - (1 - similarity**length) ** bands)


def band_keys(signatures: Bytes, bands: int, length: int) -> Hashes:
    """Return a hash of each band of each signature, [texts, bands]."""
    powers = np.full(length, _BASE)
    np.multiply.accumulate(powers, out=powers)
    places = signatures[:, : bands * length].reshape(-1, bands, length)
    keys: Hashes = np.einsum("tbl,l->tb", places.astype(np.uint64), powers)
    return keys


def _parts(items: Sequence[Any], size: Any = len) -> Iterator[Sequence[Any]]:
    """Cut a sequence into parts of some characters, and at most 2**15 items, each."""
    first = total = 0
    for place, item in enumerate(items):
        total += size(item)
        if place > first and (total > _CHARACTERS or place - first >= 1 << 15):
            yield items[first:place]
            first, total = place, size(item)
    if items:
        yield items[first:]
