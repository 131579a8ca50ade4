"""Contrasts: which texts count as one scenario, and stay on one side of a split."""

from afintro.data.records import scenario_id
from afintro.data.samples import Sample
from afintro.tasks.steering.contrasts import label_contrast, monitoring_contrast, split_contrast


def test_texts_of_one_scenario_share_the_id_of_their_samples() -> None:
    samples = [Sample("one text", scenario_id="Coridge"), Sample("another", scenario_id="Coridge"), Sample("third")]
    contrast = monitoring_contrast(samples)
    assert [list(ids) for ids in contrast.scenarios] == [["Coridge", "Coridge", scenario_id("third")]] * 2


SAMPLES = [
    Sample(f"text {name} {number}", label, name)
    for name in "abcdefgh"
    for number, label in enumerate(("aligned", "alignment_faking", "potential_faking"))
]


def test_texts_about_one_scenario_stay_on_one_side():
    for contrast in (label_contrast(SAMPLES)[0], monitoring_contrast(SAMPLES)):
        assert set(contrast.scenarios[0]) == set(contrast.scenarios[1]) == set("abcdefgh")
        parts = split_contrast(contrast, 0.4, 0)
        trained, tested = (
            {contrast.scenarios[side][index] for side in (0, 1) for index in part[side]}
            for part in (parts.train, parts.heldout)
        )
        assert trained
        assert tested
        assert not trained & tested


def test_samples_without_a_scenario_are_told_apart_by_their_texts():
    contrast, left_out = label_contrast([Sample("a b", "aligned"), Sample("c", "alignment_faking"), Sample("d", "odd")])
    assert contrast.scenarios == ([scenario_id("a b")], [scenario_id("c")])
    assert left_out == {"odd": 1}
    assert contrast.name == "alignment_faking"
    assert contrast.conversations[1][0][-1]["content"] == "c"
