"""Packed rows: which examples share a row, in which order, and how much each example weighs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from afintro.data.batch import Example, sizes_of
from afintro.data.loader import (
    EpochRows,
    PackedRows,
    RankRows,
    ResumableLoader,
    RowLayout,
    best_fit,
    by_number,
    in_turn,
    row_loader,
)

BUDGET = 8192


def lengths(count: int, seed: int = 0) -> np.ndarray:
    """Draw lengths ``[count, 2]``: prompts log-normal around 620 tokens (standard deviation 35 %), answers of 8 to 256 tokens."""
    drawn = np.random.default_rng(seed)
    prompts = drawn.lognormal(np.log(620), 0.35, count).clip(50, 7000)
    return np.stack([prompts, drawn.integers(8, 257, count)], 1).astype(np.int32)


def examples(sizes: np.ndarray) -> list[Example]:
    return [
        Example(str(i), "", "", "", "", (5,) * int(prompt), (6,) * int(answer))
        for i, (prompt, answer) in enumerate(sizes)
    ]


def members(rows: RowLayout) -> list[list[int]]:
    return [rows[i].tolist() for i in range(len(rows))]


def uids(loader: Any) -> list[list[str]]:
    return [[example.uid for example in batch.examples] for batch in loader]


def order(*indices: int) -> Any:
    return np.array(indices, dtype=np.int32)


def test_golden_rows() -> None:
    sizes = np.array([6, 5, 4, 3, 9, 2, 1, 10], dtype=np.int32)
    everything = np.arange(8, dtype=np.int32)
    # 6+4, 5+3+2, 9+1 and 10; what is left open is closed fullest first.
    assert members(best_fit(everything, sizes, 10)) == [[7], [4, 6], [1, 3, 5], [0, 2]]
    assert members(in_turn(everything, sizes, 10)) == [[0], [1, 2], [3], [4], [5, 6], [7]]
    assert members(in_turn(order(7, 4, 0), sizes, 3)) == [[7], [4], [0]], "a longer one is alone"
    assert members(by_number(order(5, 3, 1), 2)) == [[5, 3], [1]]
    assert members(best_fit(order(5, 6, 3), sizes, 10)) == [[5, 6, 3]]


def test_an_example_goes_into_the_fullest_row_that_has_room() -> None:
    assert members(best_fit(order(0, 1, 2, 3), np.array([7, 8, 2, 3], dtype=np.int32), 10)) == [[0, 3], [1, 2]]


def test_halving_and_arranging_keep_every_example() -> None:
    rows = RowLayout(order(4, 2, 0, 1, 3), np.array([0, 1, 5]))
    assert members(rows.split(1)) == [[4], [2, 0, 1, 3]]
    assert members(rows.split(3)) == [[4], [2, 0], [1, 3]]
    assert members(rows.split(9)) == [[4], [2], [0], [1], [3]]
    assert members(rows.arranged(np.array([1, 0]))) == [[2, 0, 1, 3], [4]]
    assert rows.sums(np.array([1, 2, 4, 8, 16], dtype=np.int32)).tolist() == [16, 15]


@pytest.mark.parametrize(("count", "budget", "fill"), [(20_000, BUDGET, 0.98), (700, BUDGET, 0.95), (400, 2048, 0.85)])
def test_every_example_once_an_epoch_and_no_row_above_the_budget(count: int, budget: int, fill: float) -> None:
    sizes = lengths(count).clip(1, budget // 2)
    everything = Sized(sizes)
    rows = EpochRows(everything, 1, budget, seed=3)
    number, groups = len(rows), []
    for epoch in (0, 1, 2, 7):
        rows.set_epoch(epoch)
        assert sorted(rows.layout.order.tolist()) == list(range(count))
        used = rows.layout.sums(sizes.sum(1, dtype=np.int32))
        assert used.max() <= budget
        assert len(rows) == number, "Lightning asks for the length once"
        assert used.sum() / (number * budget) >= fill
        groups.append({tuple(sorted(row)) for row in members(rows.layout)})
    assert len(groups[0] & groups[1]) < number / 2, "rows are mixed anew in every epoch"
    assert rows.denominator == count / number


class Sized(list):
    """Examples whose sizes are known."""

    def __init__(self, sizes: np.ndarray) -> None:
        super().__init__(range(len(sizes)))
        self.sizes = sizes


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    sizes = Sized(lengths(500))

    def found(seed: int, *epochs: int) -> list[list[int]]:
        rows = EpochRows(sizes, 8, BUDGET, seed)
        for epoch in epochs:
            torch.rand(3)
            rows.set_epoch(epoch)
        return members(rows.layout)

    assert found(0, 3) == found(0, 1, 3) == found(0, 3, 3)
    assert found(0, 4, 0) == found(0)
    assert len({str(found(*which)) for which in ((0,), (1,), (0, 1), (0, 2), (1, 1))}) == 5
    by_size = EpochRows(sizes, 8, None, 0)
    generator = torch.Generator().manual_seed(0)
    golden = torch.randperm(500, generator=generator, dtype=torch.int32).tolist()
    assert members(by_size.layout) == [golden[i : i + 8] for i in range(0, 500, 8)], (
        "as it was before there were budgets"
    )


def test_the_heaviest_rows_of_the_first_epoch_come_first() -> None:
    sizes = lengths(500)
    for processes in (1, 4):
        rows = EpochRows(Sized(sizes), 1, BUDGET, 0, processes)
        tokens, answers = rows.layout.sums(sizes.sum(1, dtype=np.int32)), rows.layout.sums(sizes[:, 1].copy())
        weight = list(zip(tokens.tolist(), answers.tolist(), strict=True))
        assert weight[:processes] == sorted(weight, reverse=True)[:processes]
        rest = weight[processes:]
        assert rest != sorted(rest, reverse=True), "the others are shuffled"
    drawn = examples(np.array([[4, 6], [7, 3], [1, 9], [5, 5]]))
    assert [e.uid for e in EpochRows(drawn, 1, 10, 0).heaviest().examples] == ["2"], "ties: most answer tokens"
    rows = EpochRows(drawn, 1, 10, 0, processes=2)
    assert [e.uid for rank in range(2) for e in rows.heaviest(rank).examples] == ["2", "0"]


def test_an_epoch_that_never_fits_takes_the_rows_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = lengths(300)
    rows = EpochRows(Sized(sizes), 1, BUDGET, 0)
    first = sorted(map(tuple, members(rows.layout)))
    monkeypatch.setattr("afintro.data.loader.best_fit", lambda order, lengths, budget: by_number(order, 1))
    rows.set_epoch(1)
    assert sorted(map(tuple, members(rows.layout))) == first
    assert members(rows.layout) != [list(row) for row in first]


@pytest.mark.parametrize("budget", [None, 2000])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_get_disjoint_rows_and_equally_many(budget: int | None, processes: int) -> None:
    drawn = examples(lengths(53).clip(1, 900))
    shares = []
    for rank in range(processes):
        rows = EpochRows(drawn, 4, budget, 5, processes)
        sampler = RankRows(rows, rank, processes)
        sampler.set_epoch(1)
        shares.append([rows.layout[i].tolist() for i in sampler])
        assert len(sampler) == len(shares[0]) == len(shares[-1])
        assert max(map(len, shares[-1])) <= 4 or budget is not None
    flat = [index for share in shares for row in share for index in row]
    assert sorted(flat) == list(range(53))


@pytest.mark.parametrize("budget", [None, 1500])
def test_a_resumed_loader_goes_on_with_the_rows_that_are_left(budget: int | None) -> None:
    drawn = examples(lengths(40).clip(1, 600))

    def loader(rank: int) -> ResumableLoader:
        rows = EpochRows(drawn, 4, budget, 0, 2)
        return ResumableLoader(rows, batch_size=None, sampler=RankRows(rows, rank, 2))

    for rank in range(2):
        whole, stopped, resumed = loader(rank), loader(rank), loader(rank)
        for each in (whole, stopped, resumed):
            each.sampler.set_epoch(2)
        expected = uids(whole)
        assert len(expected) == len(whole) > 3
        iterator = iter(stopped)
        done = [[example.uid for example in next(iterator).examples] for _ in range(3)]
        resumed.load_state_dict(stopped.state_dict())
        assert done + uids(resumed) == expected
        assert uids(resumed) == expected, "the next epoch is whole"
        resumed.load_state_dict(whole.state_dict())
        assert uids(resumed) == expected, "a checkpoint at the end of an epoch starts a new one"


def test_the_losses_of_an_epochs_rows_average_to_the_mean_over_examples() -> None:
    """An example weighs 1 / n in every row, so accumulating gradients over an epoch equals one large batch."""
    drawn = [replace(e, weight=0.5 if int(e.uid) % 2 else 1.0) for e in examples(lengths(60).clip(1, 900))]
    loss = torch.rand(60, dtype=torch.float64)
    wanted = (loss * torch.tensor([e.weight for e in drawn])).sum() / 60
    for processes in (1, 3):
        rows = EpochRows(drawn, 1, 3000, 0, processes)
        for epoch in (0, 1):
            rows.set_epoch(epoch)
            batches = [rows[i] for i in range(len(rows))]
            found = [
                (loss[[int(e.uid) for e in batch.examples]] * batch.weights).sum() / batch.denominator
                for batch in batches
            ]
            assert torch.isclose(torch.stack(found).mean(), wanted)


def test_sizes_and_fixed_rows() -> None:
    drawn = examples(np.array([[4, 6], [7, 3]]))
    assert sizes_of(drawn).tolist() == [[4, 6], [7, 3]]
    assert sizes_of([]).shape == (0, 2)
    rows = PackedRows(drawn, by_number(order(1, 0), 1))
    assert uids(row_loader(rows)) == [["1"], ["0"]]
    assert uids(row_loader(rows, 1, 2)) == [["0"]]
    assert rows[0].denominator == 1
