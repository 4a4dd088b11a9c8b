"""How many tokens a micro-batch may have: found by racing a few budgets against each other, then kept true.

Used by the encoder, which reports each micro-batch's tokens and seconds. The first block is a race over a ladder
of budgets. After that, every few hundred micro-batches, the budget in use races once against a neighbour, so it
climbs (or falls) slowly as texts change. Out of memory halves it at once and sets a ceiling.

A race goes round-robin, because rows come longest first and a later micro-batch is cheaper per token: taking turns
keeps that from favouring one contender.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

# A smaller budget wins unless a larger one is at least this much faster: it needs less memory.
_WORTH = 1.02
# A micro-batch that fills less of its budget than this says nothing about the budget (a block's tail).
_FILLED = 0.6


class BudgetController:
    """The budget of one model on one device.

    Args:
        ladder: Budgets in tokens to race at the start, smallest first. One alone is kept without a race.
        samples: Micro-batches per contender in a race.
        pause: Micro-batches between the end of a race and the next one.
        step: Ratio between the budget in use and the neighbour it races against.
        limits: The smallest and largest budget that a later race may try; None takes the ladder's smallest and four
            times its largest.

    Raises:
        ValueError: An empty or unsorted ladder.
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
        self._quiet = 0
        self._contenders: list[int] = []
        self._seen: dict[int, list[float]] = {}  # rates, tokens a second
        if len(ladder) > 1:
            self._start(list(ladder))

    @property
    def budget_tokens(self) -> int:
        """The budget for the next micro-batch."""
        if not self._contenders:
            return self._current
        return min(self._contenders, key=lambda budget: len(self._seen[budget]))

    @property
    def racing(self) -> bool:
        """True while timings are compared: the encoder then waits for the device after each micro-batch."""
        return bool(self._contenders)

    def observe(self, tokens: int, seconds: float, *, budget_tokens: int | None = None) -> None:
        """Reports one micro-batch that went through.

        Args:
            tokens: Its cost, in the unit of the budget.
            seconds: How long it took.
            budget_tokens: The budget that it was cut under; None is the one of now. Others may have been begun since.
        """
        if not self._contenders:
            self._quiet += 1
            if self._quiet >= self._pause:
                self._challenge()
            return
        budget = self.budget_tokens if budget_tokens is None else budget_tokens
        if budget not in self._seen:
            return
        # One row larger than its budget, or a tail: it would have been the same under any contender.
        if not _FILLED * budget <= tokens <= budget:
            return
        self._seen[budget].append(tokens / max(seconds, 1e-9))
        if all(len(self._seen[contender]) >= self._samples for contender in self._contenders):
            self._finish()

    def out_of_memory(self, tokens: int) -> None:
        """Reports a micro-batch of `tokens` that did not fit: half of it is the budget, and a race is called off."""
        self._current = max(tokens // 2, 1)
        self._ceiling = max(tokens - 1, 1)
        self._floor = min(self._floor, self._current)
        self._contenders = []
        self._quiet = 0

    def _start(self, contenders: list[int]) -> None:
        self._contenders = contenders
        self._seen = {budget: [] for budget in contenders}

    def _finish(self) -> None:
        # Not the sum: the first of a size pays for what is compiled for it, and any may meet other work on the machine.
        rates = {budget: statistics.median(seen) for budget, seen in self._seen.items()}
        best = self._contenders[0]
        for budget in self._contenders[1:]:
            if rates[budget] > rates[best] * _WORTH:
                best = budget
        self._current = best
        self._contenders = []
        self._quiet = 0

    def _challenge(self) -> None:
        """Races the budget in use against the next one up, or, every other time, the next one down."""
        ratio = self._step if self._upward else 1 / self._step
        self._upward = not self._upward
        self._quiet = 0
        other = min(max(round(self._current * ratio), self._floor), self._ceiling)
        if other != self._current:
            self._start(sorted((self._current, other)))
