"""Descriptions of features by the summaries of their clusters."""

import json

import pytest

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.clusters import from_clusters

SUMMARIES = {"0": "Refusal.", "1": " Being watched ", "2": "", "3": None, "-1": "Noise."}
LISTED = [
    {"cluster_id": 0, "size": 2, "feature_ids": [3, 5], "representative_id": 3, "representative_desc": " Refusal. "},
    {"cluster_id": "b", "feature_ids": ["40/7"], "representative_desc": "other", "summary": "Being watched"},
    {"cluster_id": -1, "feature_ids": [9], "representative_desc": "Noise."},
    {"cluster_id": 4, "feature_ids": [11], "representative_desc": ""},
]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


class TestClusters:
    def build(self, folder, assignments, summaries=SUMMARIES):
        return from_clusters(
            write(folder / "summaries.json", summaries), write(folder / "assignments.json", assignments)
        )

    def test_labels(self, tmp_path):
        described, unlabeled = self.build(tmp_path, {"40/7": 1, "12": "0", "3": 0})
        assert described == {
            "40/7": {"chosen_label": "Being watched", "cluster_id": "1", "all_labels": ["Being watched"]},
            "12": {"chosen_label": "Refusal.", "cluster_id": "0", "all_labels": ["Refusal."]},
            "3": {"chosen_label": "Refusal.", "cluster_id": "0", "all_labels": ["Refusal."]},
        }
        assert unlabeled == []

    def test_without_label(self, tmp_path):
        """No cluster, one without a summary, one with an empty summary; a summary of the noise is none."""
        described, unlabeled = self.build(
            tmp_path, {"1": 0, "2": None, "3": -1, "4": "-1", "5": 9, "6": "2", "7": 3, "8": ""}
        )
        assert list(described) == ["1"]
        assert unlabeled == ["2", "3", "4", "5", "6", "7", "8"]

    @pytest.mark.parametrize(
        ("assignments", "summaries", "what"),
        [
            ({"1": [0]}, SUMMARIES, "assignments.json, feature '1': cluster is of type list"),
            ({"1": 0.5}, SUMMARIES, "assignments.json, feature '1': cluster is of type float"),
            ({"1": True}, SUMMARIES, "assignments.json, feature '1': cluster is of type bool"),
            ({"1": 0}, {"0": 5}, "summaries.json, cluster '0': is of type int, not a string"),
            ({"1": 0}, '{"0": "\\ud83d"}', "summaries.json, cluster '0': holds half a character"),
            ({"1": 0, "2": 0}, {"7": "x"}, "no feature has a label"),
            ('{"1": 0, "2": 0, "1": 1}', SUMMARIES, "assignments.json: "),
            ({}, SUMMARIES, "assignments.json: "),
            ([], SUMMARIES, "assignments.json: "),
            ('{"1": 0,\n "2" 0}', SUMMARIES, "assignments.json, line 2: "),
            *[
                ({key: 0}, SUMMARIES, f"assignments.json, feature {key!r}: {key!r} is not a feature")
                for key in ("", "x", "-1", "1.0", "40/", "/1", "1/2/3", "01", " 1", "१", "1\n")
            ],
        ],
    )
    def test_wrong(self, tmp_path, assignments, summaries, what):
        with pytest.raises(UserError) as error:
            self.build(tmp_path, assignments, summaries)
        assert what in str(error.value)

    def test_files(self, tmp_path):
        with pytest.raises(UserError, match=r"absent.json: "):
            from_clusters(tmp_path / "absent.json", tmp_path / "absent.json")
        (tmp_path / "bad.json").write_bytes(b'{"1": "\xff"}')
        with pytest.raises(UserError, match=r"bad.json: "):
            from_clusters(tmp_path / "bad.json", tmp_path / "bad.json")


class TestLists:
    def build(self, folder, assignments, summaries=LISTED):
        path = None if assignments is None else write(folder / "assignments.json", assignments)
        return from_clusters(write(folder / "summaries.json", summaries), path)

    def test_with_assignments(self, tmp_path):
        described, unlabeled = self.build(tmp_path, {"3": 0, "5": 0, "6": 0, "40/7": "b", "8": -1, "9": -1, "10": None})
        assert {feature: entry["chosen_label"] for feature, entry in described.items()} == {
            "3": "Refusal.", "5": "Refusal.", "6": "Refusal.", "40/7": "Being watched",
        }  # fmt: skip
        assert {entry["cluster_id"] for entry in described.values()} == {"0", "b"}
        assert unlabeled == ["8", "9", "10"]

    def test_the_list_alone(self, tmp_path):
        described, unlabeled = self.build(tmp_path, None)
        assert {feature: entry["cluster_id"] for feature, entry in described.items()} == {
            "3": "0",
            "5": "0",
            "40/7": "b",
        }
        assert unlabeled == ["9", "11"]

    @pytest.mark.parametrize(
        ("assignments", "summaries", "where", "word"),
        [
            ({"3": 0, "5": "b"}, LISTED, "assignments.json, feature '5'", "list it in 0"),
            ({"3": 0, "5": -1}, LISTED, "assignments.json, feature '5'", "noise"),
            (None, SUMMARIES, "summaries.json", "needs either"),
            (None, [{"cluster_id": 0, "summary": "a"}], "summaries.json", "needs either"),
            (None, [*LISTED, LISTED[0]], "record 4", "occurs twice"),
            (None, [*LISTED, {"cluster_id": 9, "feature_ids": [5]}], "record 4", "cluster 0 already"),
            (None, [{"feature_ids": [1]}], "record 0", "cluster_id"),
            (None, ["a"], "record 0", "cluster_id"),
            (None, [{"cluster_id": 1.5}], "record 0", "float"),
            (None, [{"cluster_id": 1, "feature_ids": "12"}], "record 0", "str"),
            (None, [{"cluster_id": 1, "feature_ids": [1.5]}], "record 0", "not a feature"),
            (None, [{"cluster_id": 1, "summary": 3}], "record 0, summary", "int"),
            (None, "[{]", "line 1", "malformed"),
        ],
    )
    def test_wrong(self, tmp_path, assignments, summaries, where, word):
        with pytest.raises(UserError) as error:
            self.build(tmp_path, assignments, summaries)
        assert where in error.value.where
        assert word in error.value.what
