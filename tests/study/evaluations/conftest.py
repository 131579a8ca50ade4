"""Sessions on a tiny random model, and sessions whose answers follow a rule, so that the results are known beforehand."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from afintro.explainer.module import ExplainerModule
from afintro.lm.lora import Lora
from afintro.study.asking.queries import WrittenAnswer
from afintro.study.asking.session import Session
from afintro.study.settings import Scale
from afintro.tasks.introspection.material import Strengths
from afintro.tasks.introspection.task import Introspection

STRENGTHS = Strengths(train=[0.5, 1.0], validation=[0.6, 1.1], test=[0.7, 1.4, 2.8])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Make the vectors that depend on a model once for all tests."""
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path_factory.getbasetemp() / "study_cache"))


@pytest.fixture(scope="session")
def study_module(study_model):
    """Return a module with an adapter that changes the answers."""
    module = ExplainerModule(str(study_model), lora=Lora(r=2, alpha=4))
    with torch.random.fork_rng():
        torch.manual_seed(0)  # half of an adapter starts at random: whichever test comes first, the same
        module.configure_model()
    drawn = torch.Generator().manual_seed(0)
    for name, parameter in module.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=drawn)
    return module.eval()


def variant(**settings):
    """Return the data of a variant with short contexts."""
    return Introspection(**{"longest_context": 300, "doses": STRENGTHS, "vector_count": 6, **settings})


@pytest.fixture
def open_session(study_module):
    """Return a function that opens a session of a variant. Further arguments are those of its data."""

    def make(seed=0, scale=None, **settings):
        scale = scale or Scale(contexts=4, vectors=3, items=3, new_tokens=4, batch_size=8)
        doses = Strengths(train=[1.0], validation=[1.2], test=[1.4])
        return Session(study_module, variant(**{"seed": seed, "doses": doses, **settings}), seed, 7, scale)

    return make


class Planted(Session):
    """A session that answers by rules instead of a model, and keeps what it was asked.

    ``says(system, query, tokens)`` gives log-probabilities of answer tokens, ``sees(system, query)`` odds by layer,
    ``scores(system, query, words)`` log-probabilities of words, ``writes(system, query)`` an answer, as text or as a
    written answer, ``weighs(system, query)`` the norms of a context's activations by layer.
    """

    current = "adapter"
    steering_kept = False
    says = sees = scores = writes = None
    weighs = staticmethod(lambda system, query: [0.0])

    @contextmanager
    def system(self, name):
        self.current = name
        yield

    def ask(self, queries, answers):
        self.asked = [*getattr(self, "asked", []), list(queries)]
        return [self.says(self.current, query, tokens) for query, tokens in zip(queries, answers, strict=True)]

    def lens(self, queries, answers):
        return None if self.sees is None else [self.sees(self.current, query) for query in queries]

    def norms(self, queries):
        return np.array([self.weighs(self.current, query) for query in queries])

    def score(self, queries, words, keep_steering=False):
        self.steering_kept = keep_steering
        return [self.scores(self.current, query, own) for query, own in zip(queries, words, strict=True)]

    def write(self, queries, keep_steering=False):
        assert keep_steering == self.steering_kept
        self.asked = [*getattr(self, "asked", []), list(queries)]
        answers = [self.writes(self.current, query) for query in queries]
        return [WrittenAnswer(answer, False) if isinstance(answer, str) else answer for answer in answers]


@pytest.fixture
def planted(study_module):
    """Return a function that makes a planted session."""

    def make(seed=0, scale=None, says=None, sees=None, scores=None, writes=None, **settings):
        scale = scale or Scale(contexts=8, vectors=4, items=1000)
        session = Planted(study_module, variant(seed=seed, **settings), seed, 7, scale)
        session.says, session.sees, session.scores, session.writes = says, sees, scores, writes
        return session

    return make


@pytest.fixture
def one_by_one(monkeypatch):
    """Return a function after which sessions put every query in a forward pass of its own, last query first."""
    ask, score, lens = Session.ask, Session.score, Session.lens

    def backwards(single):
        def asked(self, queries, others, *more, **named):
            found = [single(self, query, place, others, *more, **named) for place, query in enumerate(queries)][::-1]
            return found[::-1]

        return asked

    def on():
        monkeypatch.setattr(Session, "ask", backwards(lambda s, q, i, answers: ask(s, [q], [answers[i]])[0]))
        monkeypatch.setattr(
            Session, "score", backwards(lambda s, q, i, words, **more: score(s, [q], [words[i]], **more)[0])
        )
        monkeypatch.setattr(Session, "lens", backwards(lambda s, q, i, answers: lens(s, [q], answers)[0]))

    return on
