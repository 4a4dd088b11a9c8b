"""The order of the batches: every step draws one source, and gives each rank a batch of it.

Mixed sources in a step would mix the negatives that ranks exchange, and sources with different numbers of negatives would
let the ranks wait for each other without end. The order depends only on the seed and the epoch, so a resume starts at any
step without reading what is before it. Torch-free; a `DataLoader` takes it as its `batch_sampler`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from actors.errors import ConfigError
from pipeline.train.data import PASSAGE, QUERY, Ints, Source

# Texts that are looked at without progress before rows stay where they are; an attempt counts as the second at least.
_EFFORT = 100_000_000
_LEAST_EFFORT = 400_000
_MOST_STEPS = 100_000_000  # of an epoch


class SourceBatchSampler:
    """Batches of row numbers, of which `ranks` consecutive ones are of one source. The last, smaller batches are dropped.

    A row number counts through all sources, in their order, as in a `ConcatDataset`. In an epoch a source has as many steps
    as its rows fill, times its weight, and at least one. The steps of all sources are shuffled. The rows of a source are
    shuffled too, and all are used before the first one is used again. Rows with the same text, as query or passage, are
    moved to different steps where that is possible.

    Args:
        sources: The sources.
        batch_size: Rows of a batch of one rank.
        ranks: Number of ranks.
        seed: Seed of the order.

    Attributes:
        steps: Steps of an epoch.
        drop_last: True; the libraries ask for it.

    Raises:
        ConfigError: a source has fewer rows than one step.
    """

    drop_last = True

    def __init__(self, sources: Sequence[Source], batch_size: int, *, ranks: int = 1, seed: int = 0) -> None:
        self.batch_size = batch_size
        self._sources, self._ranks, self._seed = tuple(sources), ranks, seed
        self._step_rows = batch_size * ranks
        self._counts = epoch_steps(sources, self._step_rows)
        self._starts = np.cumsum([0, *(source.rows for source in sources)])
        self.steps = sum(self._counts)
        self._texts: dict[int, npt.NDArray[np.int32]] = {}
        self._orders: dict[int, tuple[int, Ints]] = {}
        self.set_epoch(0)

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Set the epoch of the next iteration, and the step that it starts with."""
        self._epoch, self._first_step = epoch, first_step

    def __len__(self) -> int:
        return self.steps * self._ranks

    def __iter__(self) -> Iterator[list[int]]:
        drawn = np.repeat(np.arange(len(self._sources)), self._counts)
        np.random.default_rng([self._seed, 0, self._epoch]).shuffle(drawn)
        done = np.bincount(drawn[: self._first_step], minlength=len(self._sources))
        for source in drawn[self._first_step :].tolist():
            rows = self._rows(source, self._epoch * self._counts[source] + int(done[source]))
            done[source] += 1
            for batch in (rows + self._starts[source]).reshape(self._ranks, self.batch_size):
                yield batch.tolist()

    def _rows(self, source: int, number: int) -> Ints:
        """Return the rows of a source's step, counted from the first epoch."""
        turn, place = divmod(number, self._sources[source].rows // self._step_rows)
        if self._orders.get(source, (None,))[0] != turn:
            self._orders[source] = (turn, self._order(source, turn))
        return self._orders[source][1][place * self._step_rows : (place + 1) * self._step_rows]

    def _order(self, source: int, turn: int) -> Ints:
        """Return the order in which all rows of a source are used for the n-th time."""
        if source not in self._texts:
            self._texts[source] = _repeated_texts(self._sources[source])
        random = np.random.default_rng([self._seed, 1, source, turn])
        order = random.permutation(self._sources[source].rows)
        separate(order, self._texts[source], self._step_rows, random)
        return order


def epoch_steps(sources: Sequence[Source], step_rows: int) -> list[int]:
    """Return the number of steps of each source in an epoch.

    Args:
        sources: The sources.
        step_rows: Rows of a step, of all ranks together.

    Raises:
        ConfigError: a source has fewer rows than one step, or there are too many steps.
    """
    for source in sources:
        if source.rows < step_rows:
            raise ConfigError(
                f"{source.name!r} has {source.rows:,} rows, and a step takes {step_rows:,} of one source; set "
                f"train.batch_rows to {source.rows:,} or less, or give the source more rows"
            )
    steps = [max(1, round(source.weight * (source.rows // step_rows))) for source in sources]
    if sum(steps) > _MOST_STEPS:
        most = max(sources, key=lambda source: source.weight)
        raise ConfigError(
            f"an epoch would have {sum(steps):.3g} steps, and at most {_MOST_STEPS:,} are supported; {most.name!r} has the weight "
            f"{most.weight:g}: lower it"
        )
    return steps


def _repeated_texts(source: Source) -> npt.NDArray[np.int32]:
    """Return numbers of the texts that several rows have, int32 [2, rows] for query and passage; -1 for all others."""
    hashes = np.stack([source.hashes(QUERY), source.hashes(PASSAGE)])
    hashes[1, hashes[0] == hashes[1]] += 1  # a row with one text on both sides does not repeat itself
    _, numbers, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    repeated: npt.NDArray[np.int32] = np.where(counts[numbers] > 1, numbers, -1).astype(np.int32).reshape(2, -1)
    return repeated


def separate(order: Ints, texts: npt.NDArray[np.int32], step_rows: int, random: np.random.Generator) -> None:
    """Swap rows between steps, in place, until no step has a text twice, or swaps no longer help.

    A row that repeats a text of its step is swapped with a random one. A swap is taken back if one of the two repeats a text
    in its new step.

    Args:
        order: Rows in their order, int64 [rows].
        texts: Numbers of the texts of each row, int32 [columns, rows]; a negative number is a text that no other row has.
        step_rows: Rows of a step. Rows after the last full step are in none.
        random: Source of the partners.
    """
    places = _Places(order, texts, step_rows)
    later = places.repeats()[1]
    least, effort = len(later), 0
    steps, after = divmod(len(order), step_rows)
    # Of a text that more rows have than there are steps, some rows share a step in any order.
    sure = int(np.maximum(np.bincount(texts[texts >= 0]) - steps - after, 0).sum())
    while len(later) > sure and effort < _EFFORT:
        partners, first = np.unique(random.integers(0, len(order), len(later)), return_index=True)
        free = ~np.isin(partners, later)
        here, there = later[first][free], partners[free]
        texts_here = texts[:, order[np.concatenate([later, there])]]
        places.swap(here, there)
        crowded, _ = places.repeats(texts_here)
        back = np.isin(here, crowded) | np.isin(there, crowded)
        places.swap(here[back], there[back])
        later = places.repeats(texts_here)[1]
        effort += max(texts.size, _LEAST_EFFORT)
        if len(later) < 0.99 * least:
            least, effort = len(later), 0


class _Places:
    """The order of the rows, and the places of those that share a text with another row."""

    def __init__(self, order: Ints, texts: npt.NDArray[np.int32], step_rows: int) -> None:
        self._order, self._step_rows, self._steps = order, step_rows, len(order) // step_rows
        column, self._row = np.nonzero(texts >= 0)
        self._text = texts[column, self._row]
        self._wanted = np.zeros(self._text.max(initial=-1) + 1, bool)
        self._of_row = np.empty_like(order)
        self._of_row[order] = np.arange(len(order))

    def swap(self, here: Ints, there: Ints) -> None:
        """Swap the rows of places, all of them different."""
        self._order[here], self._order[there] = self._order[there], self._order[here]
        self._of_row[self._order[here]], self._of_row[self._order[there]] = here, there

    def repeats(self, texts: npt.NDArray[np.int32] | None = None) -> tuple[Ints, Ints]:
        """Return the places of rows that share a text with a row of their step, and those of all but the first of them.

        Args:
            texts: The texts that are looked at; None: all.
        """
        row, text = self._row, self._text
        if texts is not None:
            texts = texts[texts >= 0]
            self._wanted[texts] = True
            wanted = np.flatnonzero(self._wanted[text])
            self._wanted[texts] = False
            row, text = row[wanted], text[wanted]
        place = self._of_row[row]
        step = place // self._step_rows
        in_step = step < self._steps
        place, key = place[in_step], text[in_step].astype(np.int64) * self._steps + step[in_step]
        by_key = np.argsort(key, kind="stable")
        same = np.diff(key[by_key]) == 0
        second = place[by_key[1:][same]]
        return np.unique(np.concatenate([place[by_key[:-1][same]], second])), np.unique(second)
