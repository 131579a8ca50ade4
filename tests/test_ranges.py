from dataclasses import dataclass, field

import pytest

from afintro.errors import UserError
from afintro.ranges import NonNegativeFloat, OpenUnitInterval, PositiveInt, check_ranges


@dataclass
class Settings:
    count: PositiveInt | None = None
    share: OpenUnitInterval = 0.5
    weights: dict[str, NonNegativeFloat] = field(default_factory=dict)
    seed: int = -1


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        (Settings(count=0), "data.count"),
        (Settings(share=0.0), "data.share"),
        (Settings(share=1.0), "data.share"),
        (Settings(weights={"a": 1.0, "b": -0.5}), "data.weights"),
    ],
)
def test_a_number_outside_of_its_range_is_refused_by_name(settings: Settings, where: str) -> None:
    with pytest.raises(UserError) as error:
        check_ranges(settings, "data")
    assert error.value.where == where


def test_numbers_at_the_edges_of_their_ranges_pass() -> None:
    check_ranges(Settings(count=1, share=1e-9, weights={"a": 0.0}), "data")
    check_ranges(Settings(), "data")
