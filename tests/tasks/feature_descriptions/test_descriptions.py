"""Descriptions of features: from categories, and read again."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from afintro.data.files import write_json
from afintro.errors import UserError
from afintro.tasks.feature_descriptions.descriptions import from_categories, read_descriptions

REAL = (
    Path(os.environ.get("AFINTRO_AF_DATA") or Path(__file__).parents[4] / "shared/data/af")
    / "sae_feature_categories.json"
)
ENTRY = {"latent_id": 13, "category": "intent", "confidence": 5, "reasoning": "Complies.", "description": "Group A."}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


class TestCategories:
    def build(self, folder, content):
        return from_categories(write(folder / "categories.json", content))

    def test_labels(self, tmp_path):
        other = {"latent_id": "40/2", "reasoning": " Watched. ", "description": None}
        described, unlabeled = self.build(tmp_path, {"intent": [ENTRY], "monitoring": [other]})
        assert described == {
            "13": {
                "chosen_label": "Complies.", "cluster_id": "intent", "all_labels": ["Complies.", "Group A."],
                "category": "intent",
            },
            "40/2": {
                "chosen_label": "Watched.", "cluster_id": "monitoring", "all_labels": ["Watched."],
                "category": "monitoring",
            },
        }  # fmt: skip
        assert unlabeled == []

    def test_without_reasoning_the_description_and_without_both_nothing(self, tmp_path):
        entries = [
            ENTRY | {"reasoning": " "},
            ENTRY | {"latent_id": 14, "reasoning": "", "description": " "},
            {"latent_id": 15},
        ]
        described, unlabeled = self.build(tmp_path, {"intent": entries})
        assert described["13"]["chosen_label"] == "Group A."
        assert described["13"]["all_labels"] == ["Group A."]
        assert (list(described), unlabeled) == (["13"], ["14", "15"])

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            ({"intent": [ENTRY], "b": [ENTRY | {"category": "b"}]}, "b, record 0: feature 13 is listed in intent, rec"),
            ({"a": [{"latent_id": 1}, {"latent_id": 1}]}, "a, record 1: feature 1 is listed in a, record 0 already"),
            ({"other": [ENTRY]}, "other, record 0: has the category 'intent'"),
            ({"intent": ENTRY}, "intent: is of type dict, not a list"),
            ({"intent": [13]}, "intent, record 0: is of type int, not an object"),
            ({"intent": [{"reasoning": "a"}]}, "intent, record 0: has no field 'latent_id'"),
            ({"intent": [ENTRY | {"latent_id": 1.5}]}, "intent, record 0: 1.5 is not a feature"),
            ({"intent": [ENTRY | {"latent_id": True}]}, "intent, record 0: True is not a feature"),
            ({"intent": [ENTRY | {"latent_id": -1}]}, "intent, record 0: -1 is not a feature"),
            ({"intent": [ENTRY | {"reasoning": 5}]}, "intent, record 0, reasoning: is of type int, not a string"),
            ({"intent": []}, "no feature has a label"),
        ],
    )
    def test_wrong(self, tmp_path, content, what):
        with pytest.raises(UserError, match=re.escape(f"categories.json, {what}" if "record" in what else what)):
            self.build(tmp_path, content)

    @pytest.mark.skipif(not REAL.exists(), reason="the real labels are not here")
    def test_real_file(self):
        described, unlabeled = from_categories(REAL)
        clusters = Counter(description["cluster_id"] for description in described.values())
        assert (len(described), unlabeled, clusters.most_common(1)) == (1287, [], [("alignment_faking_intent", 868)])
        assert described["13"]["chosen_label"].startswith("Detects final decision to comply with harmful requests")


DESCRIPTION = {"chosen_label": "Refusal.", "cluster_id": "0", "all_labels": ["Refusal.", "No."]}


class TestRead:
    def test_what_was_built(self, tmp_path):
        described, _ = TestCategories().build(tmp_path, {"intent": [ENTRY]})
        described |= {"40/5": DESCRIPTION}
        write_json(tmp_path / "descriptions.json", described)
        assert read_descriptions(tmp_path / "descriptions.json") == described

    def test_empty_labels_are_left_out(self, tmp_path):
        path = write(tmp_path / "descriptions.json", {"1": DESCRIPTION | {"all_labels": ["", " No. ", None]}})
        assert read_descriptions(path)["1"]["all_labels"] == ["No."]

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            ({"a": DESCRIPTION}, "feature 'a': 'a' is not a feature"),
            ({"1": "Refusal."}, "feature '1': is not an object"),
            ({"1": DESCRIPTION | {"all_labels": "Refusal."}}, "feature '1': is not an object with a list 'all_labels'"),
            ({"1": DESCRIPTION | {"all_labels": [3]}}, "feature '1', all_labels: is of type int"),
            ({"1": DESCRIPTION | {"chosen_label": " "}}, "feature '1': has no chosen_label"),
            ({"1": DESCRIPTION | {"cluster_id": 0}}, "feature '1', cluster_id: is of type int"),
            ({"1": {"chosen_label": "a", "all_labels": []}}, "feature '1': has no chosen_label or no cluster_id"),
            ({"1": DESCRIPTION | {"category": 2}}, "feature '1', category: is of type int"),
        ],
    )
    def test_wrong(self, tmp_path, content, what):
        path = write(tmp_path / "descriptions.json", content)
        with pytest.raises(UserError, match=re.escape(f"{path}, {what}")):
            read_descriptions(path)
