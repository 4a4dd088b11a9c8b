"""Controller of the token budget of micro-batches: it measures a few budgets and keeps the fastest.

Used by the encoder, which reports the tokens and seconds of each micro-batch. It starts with a race over a ladder of
budgets. Then, after every few hundred micro-batches, the current budget races against a larger or a smaller one, so
that it follows changes of the texts slowly. When memory runs out, the budget is halved at once and gets an upper limit.

The contenders of a race take turns. Rows come longest first and later micro-batches are cheaper per token, so any other
order would favour one contender.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

# A smaller budget wins unless a larger one is faster by this factor: a smaller budget needs less memory.
_MIN_SPEEDUP = 1.02
# A micro-batch that fills less of its budget than this (the end of a block) is no measurement of the budget.
_MIN_FILL = 0.6


class BudgetController:
    """The budget of one model on one device.

    Args:
        ladder: Budgets in tokens of the first race, smallest first. A single budget is used without a race.
        samples: Micro-batches per contender in a race.
        pause: Micro-batches between the end of a race and the next one.
        step: Ratio between the current budget and the one it races against.
        limits: Smallest and largest budget of later races; None: the smallest of the ladder and four times its largest.

    Raises:
        ValueError: The ladder is empty or not rising.
    """

    def __init__(
        self,
        ladder: Sequence[int],
        *,
        samples: int = 5,
        pause: int = 300,
        step: float = 1.4,
        limits: tuple[int, int] | None = None,
    ) -> None:
        if not ladder or list(ladder) != sorted(set(ladder)) or ladder[0] < 1:
            raise ValueError(f"ladder {list(ladder)} must be rising budgets of 1 token or more.")
        self._samples = samples
        self._pause = pause
        self._step = step
        self._floor, self._ceiling = limits or (ladder[0], ladder[-1] * 4)
        self._current = ladder[len(ladder) // 2]
        self._upward = True
        self._batches_since_race = 0
        self._contenders: list[int] = []
        self._rates: dict[int, list[float]] = {}  # budget to tokens per second of each micro-batch
        if len(ladder) > 1:
            self._start(list(ladder))

    @property
    def budget_tokens(self) -> int:
        """Budget of the next micro-batch."""
        if not self._contenders:
            return self._current
        return min(self._contenders, key=lambda budget: len(self._rates[budget]))

    @property
    def racing(self) -> bool:
        """True during a race: the encoder then waits for the device after each micro-batch."""
        return bool(self._contenders)

    def observe(self, tokens: int, seconds: float, *, budget_tokens: int | None = None) -> None:
        """Report one finished micro-batch.

        Args:
            tokens: Its cost, in the unit of the budget.
            seconds: Its duration.
            budget_tokens: The budget that it was cut for, which may have changed since; None: the current budget.
        """
        if not self._contenders:
            self._batches_since_race += 1
            if self._batches_since_race >= self._pause:
                self._challenge()
            return
        budget = self.budget_tokens if budget_tokens is None else budget_tokens
        if budget not in self._rates:
            return
        # Not a measurement: a row larger than the budget, or the end of a block, is the same for all contenders.
        if not _MIN_FILL * budget <= tokens <= budget:
            return
        self._rates[budget].append(tokens / max(seconds, 1e-9))
        if all(len(self._rates[contender]) >= self._samples for contender in self._contenders):
            self._finish()

    def out_of_memory(self, tokens: int) -> None:
        """Report a micro-batch of `tokens` that did not fit into memory: halve the budget and end the race."""
        self._current = max(tokens // 2, 1)
        self._ceiling = max(tokens - 1, 1)
        self._floor = min(self._floor, self._current)
        self._contenders = []
        self._batches_since_race = 0

    def _start(self, contenders: list[int]) -> None:
        self._contenders = contenders
        self._rates = {budget: [] for budget in contenders}

    def _finish(self) -> None:
        # Medians: the first micro-batch of a size includes compilation, and any may be slowed by other processes.
        rates = {budget: statistics.median(samples) for budget, samples in self._rates.items()}
        best = self._contenders[0]
        for budget in self._contenders[1:]:
            if rates[budget] > rates[best] * _MIN_SPEEDUP:
                best = budget
        self._current = best
        self._contenders = []
        self._batches_since_race = 0

    def _challenge(self) -> None:
        """Start a race of the current budget against a larger one and, every other time, against a smaller one."""
        ratio = self._step if self._upward else 1 / self._step
        self._upward = not self._upward
        self._batches_since_race = 0
        other = min(max(round(self._current * ratio), self._floor), self._ceiling)
        if other != self._current:
            self._start(sorted((self._current, other)))
