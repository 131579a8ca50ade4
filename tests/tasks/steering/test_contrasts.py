"""Contrasts: which texts count as one scenario."""

from afintro.data.records import scenario_id
from afintro.data.samples import Sample
from afintro.tasks.steering.contrasts import monitoring_contrast


def test_texts_of_one_scenario_share_the_id_of_their_samples() -> None:
    samples = [Sample("one text", scenario_id="Coridge"), Sample("another", scenario_id="Coridge"), Sample("third")]
    contrast = monitoring_contrast(samples)
    assert [list(ids) for ids in contrast.scenarios] == [["Coridge", "Coridge", scenario_id("third")]] * 2
