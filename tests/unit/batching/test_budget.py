from __future__ import annotations

from collections.abc import Callable

import pytest

from actors.batching.budget import BudgetController


def run(controller: BudgetController, rate: Callable[[int], float], micro_batches: int) -> list[int]:
    """Report full micro-batches to the controller; return the budgets that it chose."""
    budgets = []
    for _ in range(micro_batches):
        budget = controller.budget_tokens
        controller.observe(budget, budget / rate(budget))
        budgets.append(budget)
    return budgets


def test_the_fastest_budget_of_the_ladder_wins_the_first_race():
    controller = BudgetController([1024, 2048, 4096], samples=2)
    rates = {1024: 900.0, 2048: 1000.0, 4096: 950.0}
    budgets = run(controller, rates.__getitem__, 6)
    assert sorted(budgets) == [1024, 1024, 2048, 2048, 4096, 4096]
    assert controller.budget_tokens == 2048
    assert not controller.racing


def test_contenders_of_a_race_take_turns():
    controller = BudgetController([1, 2, 4], samples=3)
    assert run(controller, lambda _: 1.0, 9) == [1, 2, 4] * 3


def test_a_slightly_faster_larger_budget_does_not_win():
    controller = BudgetController([1000, 2000], samples=1)
    run(controller, {1000: 1000.0, 2000: 1010.0}.__getitem__, 2)
    assert controller.budget_tokens == 1000


def test_the_budget_rises_to_its_limit_while_larger_is_faster():
    controller = BudgetController([1000], pause=5, step=1.5, samples=2, limits=(500, 4000))
    run(controller, float, 400)
    assert controller.budget_tokens == 4000


def test_the_budget_falls_to_its_limit_while_smaller_is_faster():
    controller = BudgetController([1000], pause=5, step=1.5, samples=2, limits=(500, 4000))
    run(controller, lambda budget: 1 / budget, 400)
    assert controller.budget_tokens == 500


def test_partly_filled_and_oversized_micro_batches_are_not_measured():
    controller = BudgetController([1000, 2000], samples=1)
    controller.observe(100, 1e-9)
    controller.observe(50_000, 1e-9)
    assert controller.racing
    assert controller.budget_tokens == 1000


def test_out_of_memory_halves_the_budget_and_limits_later_races():
    controller = BudgetController([64], pause=3, step=2.0, samples=1)
    controller.out_of_memory(64)
    assert controller.budget_tokens == 32
    for _ in range(10):
        controller.out_of_memory(controller.budget_tokens)
    assert controller.budget_tokens == 1

    controller = BudgetController([64, 128], pause=3, step=2.0, samples=1)
    controller.out_of_memory(100)
    assert controller.budget_tokens == 50
    assert max(run(controller, float, 200)) == 99


@pytest.mark.parametrize("ladder", [[], [2, 1], [1, 1], [0, 5]])
def test_a_ladder_that_does_not_rise_is_refused(ladder):
    with pytest.raises(ValueError, match="must be rising budgets"):
        BudgetController(ladder)
