"""Find near-duplicate texts in near-linear time, without taking two questions in one template for duplicates.

Two texts are near-duplicates if one of three things holds of their words (case, punctuation and white space do not count):

1. The words are equal.
2. One word was replaced, inserted or dropped, and 0.16 of the text's information at most is lost with that word. The
   information of a word is its squared inverse document frequency, as in the cosine of TF-IDF vectors (Spärck Jones 1972):
   a word that few other texts hold is content. A replaced word is content only if it is rare on both sides, because a
   misspelling and a rare synonym are rare on one side.
3. One text holds the other whole, or at least 0.3 of the shorter text's informative eight-word shingles are in both texts
   (Broder 1997, on the resemblance and containment of documents).

What many texts hold is a template and proves nothing. A phrase of three words in more than ten texts carries no information
(more than a thousandth of the texts in a large corpus, more than a tenth, but at least four, in a small corpus), a shingle
informs only if six of its eight words do and few texts hold it, and a gap that many texts fill differently is a slot of a
template. So a text that consists of template words alone has only equal texts as duplicates.

The limits: ten texts or fewer in a template of their own are taken for near-duplicates of each other; two small changes in a
text of fewer than about 20 words are not found; nor is a paraphrase. Document frequencies are those of the texts at hand, so
a pair near the threshold may change sides when texts are added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from afintro.data.words import is_spaceless, normalized_words

SHINGLE_WORDS = 8  # words in a shingle
INFORMATIVE_WORDS = 6  # words of a shingle that must carry information
CONTAINMENT = 0.3  # share of the shorter text's informative shingles from which on two texts match
LIGHT = 0.16  # largest share of a text's information that one changed word may carry
TEMPLATE_TEXTS = 10  # a phrase in more texts belongs to a template
LONGEST = 100  # words of a text up to which one changed word is looked for: in longer texts shingles find it
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Duplicates:
    """Hold which texts are equal and which are nearly equal.

    Args:
        distinct: ``[n]`` int64, for each text the index among the distinct texts; -1 for a text without words.
        pairs: ``[m, 2]`` int64, pairs of distinct texts that are nearly equal, the smaller index first, sorted.
        likeness: ``[m]`` float64, for each pair the share of shingles, or of information, that both texts have.
    """

    distinct: Ints
    pairs: Ints
    likeness: NDArray[np.float64]

    def neighbors(self) -> list[dict[int, float]]:
        """Return for each distinct text the likeness of the texts that nearly equal that text, by index."""
        near: list[dict[int, float]] = [{} for _ in range(int(self.distinct.max(initial=-1)) + 1)]
        for (one, other), likeness in zip(self.pairs.tolist(), self.likeness.tolist(), strict=True):
            near[one][other] = near[other][one] = likeness
        return near


def find_duplicates(texts: Sequence[str]) -> Duplicates:
    """Find all texts that are equal or nearly equal after normalization, see the top of the module for the rule.

    Args:
        texts: All texts at hand: what counts as a template depends on all of them.
    """
    corpus = Corpus(texts)
    found = [corpus.changed_words(), corpus.shared_passages(), corpus.whole_copies()]
    return corpus.duplicates(found)


Found = tuple[Ints, NDArray[np.float64]]  # pairs [m, 2] of distinct texts, and the likeness [m] of each pair


class Corpus:
    """Index the distinct texts of a corpus by hashes of their passages.

    All passages are hashed at once by prefix sums of a polynomial modulo 2**64 over 64-bit word hashes (Karp & Rabin 1987), so
    that a passage costs two look-ups whatever its length. No result depends on Python's hash, which differs between processes.

    Args:
        texts: All texts at hand.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        by_text: dict[str, int] = {}
        by_words: dict[str, int] = {}
        vocabulary: dict[str, int] = {}
        flat: list[NDArray[np.int32]] = []
        edge = vocabulary.setdefault("", 0)  # stands before and after each text
        for text in dict.fromkeys(texts):
            words = normalized_words(text)
            by_text[text] = by_words.setdefault(" ".join(words), len(by_words)) if words else -1
            if by_text[text] == len(flat):
                ids = [vocabulary.setdefault(word, len(vocabulary)) for word in words]
                flat.append(np.array([edge, *ids, edge], np.int32))
        self.distinct = np.array([by_text[text] for text in texts], np.int64)
        self.count = len(flat)
        lengths = np.array([len(ids) for ids in flat], np.int64)
        ends = np.cumsum(lengths)
        self.starts, self.ends = ends - lengths + 1, ends - 1  # of the words within the edges
        self.words = np.concatenate([np.zeros(0, np.int32), *flat])
        self.owners: Ints = np.repeat(np.arange(self.count), lengths)
        self.spaceless = np.array([bool(word) and is_spaceless(word) for word in vocabulary])[self.words]
        self._hash(np.array([_word_hash(word) for word in vocabulary], np.uint64))
        self.few = max(4, min(TEMPLATE_TEXTS, self.count // 10))
        self.information = self._information()

    def _hash(self, values: Hashes) -> None:
        size = len(self.words) + 2  # a gap is two words wide at most
        powers, inverses = (
            np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(size, base, np.uint64)]))
            for base in (BASE, pow(BASE, -1, 2**64))
        )
        sums = np.cumsum(values[self.words] * powers[: len(self.words)], dtype=np.uint64)
        self._sums, self._inverses = np.concatenate([np.zeros(1, np.uint64), sums]), inverses

    def passages(self, starts: Ints, ends: Ints) -> Hashes:
        """Return ``[n]`` hashes of the words from ``starts`` to before ``ends``, both ``[n]`` positions."""
        return (self._sums[ends] - self._sums[starts]) * self._inverses[starts]

    def gapped(self, at: Ints, width: int) -> Hashes:
        """Return ``[n]`` hashes of the texts without the ``width`` words from the positions ``at``, ``[n]``, on."""
        owners = self.owners[at]
        start, end = self.starts[owners], self.ends[owners]
        after = (self._sums[end] - self._sums[at + width]) * self._inverses[width]
        return (self._sums[at] - self._sums[start] + after) * self._inverses[start]

    def _information(self) -> NDArray[np.float64]:
        """Return ``[positions]`` float64, the information of each word where it stands: 0 within a template's phrase."""
        others = np.maximum(_texts_per(self.words, self.owners) - 1, 1)
        information = np.log(max(self.count, 1) / others) ** 2
        middles = np.flatnonzero(self.words)  # all but the edges
        phrases = _texts_per(self.passages(middles - 1, middles + 2), self.owners[middles])
        template = middles[phrases > max(self.few, self.count // 1000)]
        for shift in (-1, 0, 1):
            information[template + shift] = 0.0
        information[self.words == 0] = 0.0
        return information

    def changed_words(self) -> Found:
        """Find texts that differ in one word, or in one or two characters of a script without spaces."""
        totals = np.bincount(self.owners, self.information, self.count)
        short = self.ends - self.starts <= LONGEST
        inside = np.flatnonzero((self.words > 0) & short[self.owners])
        double = inside[self.spaceless[inside] & self.spaceless[np.minimum(inside + 1, len(self.words) - 1)]]
        keys, owners = [self.passages(self.starts, self.ends)[short]], [np.flatnonzero(short)]
        shares = [np.full(len(owners[0]), np.inf)]  # a text without a gap: what counts is what the other text has more
        for at, width in ((inside, 1), (double, 2)):
            lost = sum((self.information[at + step] for step in range(width)), np.zeros(len(at)))
            with np.errstate(invalid="ignore"):
                shares.append(np.where(totals[self.owners[at]] > 0, lost / totals[self.owners[at]], np.inf))
            keys.append(self.gapped(at, width))
            owners.append(self.owners[at])
        first, second, share = _pairs_within(
            np.concatenate(keys), np.concatenate(owners), np.concatenate(shares), self.few
        )
        light = share <= LIGHT
        return np.stack([first, second], 1)[light], 1 - share[light]

    def _shingles(self) -> tuple[Ints, Ints]:
        """Return the positions of all shingles, and in how many texts each shingle is."""
        starts = np.flatnonzero(self.words)
        starts = starts[starts + SHINGLE_WORDS <= self.ends[self.owners[starts]]]
        return starts, _texts_per(self.passages(starts, starts + SHINGLE_WORDS), self.owners[starts])

    def shared_passages(self) -> Found:
        """Find texts that share informative shingles."""
        starts, held = self._shingles()
        informs = np.concatenate([[0], np.cumsum(self.information > 0)])
        starts = starts[(informs[starts + SHINGLE_WORDS] - informs[starts] >= INFORMATIVE_WORDS) & (held <= self.few)]
        keys, owners = self.passages(starts, starts + SHINGLE_WORDS), self.owners[starts]
        sizes = np.bincount(np.unique(np.stack([owners, keys.view(np.int64)], 1), axis=0)[:, 0], minlength=self.count)
        first, second, _ = _pairs_within(keys, owners, np.zeros(len(keys)), self.few)
        pairs, shared = np.unique(np.stack([first, second], 1), axis=0, return_counts=True)
        share = shared / np.minimum(sizes[pairs[:, 0]], sizes[pairs[:, 1]])
        return pairs[share >= CONTAINMENT], share[share >= CONTAINMENT]

    def whole_copies(self, most: int | None = None) -> Found:
        """Find texts of eight words or more that stand whole in another text, by their rarest shingle.

        Args:
            most: Number of texts that may hold the rarest shingle; None for the number from which on a template begins.
        """
        starts, held = self._shingles()
        rarest = np.lexsort((held, self.owners[starts]))
        rarest = rarest[np.unique(self.owners[starts[rarest]], return_index=True)[1]]
        rarest = rarest[(held[rarest] > 1) & (held[rarest] <= (self.few if most is None else most))]
        keys = self.passages(starts, starts + SHINGLE_WORDS)
        order = np.argsort(keys, kind="stable")
        left, right = (np.searchsorted(keys[order], keys[rarest], side) for side in ("left", "right"))
        at = np.repeat(
            starts[rarest], right - left
        )  # the rarest shingle of a text, once for each place where it stands
        within = np.arange(len(at)) - np.repeat(np.cumsum(right - left) - (right - left), right - left)
        place = starts[order[np.repeat(left, right - left) + within]]
        text, other = self.owners[at], self.owners[place]
        begin = place - (at - self.starts[text])
        end = begin + self.ends[text] - self.starts[text]
        fits = (text != other) & (begin >= self.starts[other]) & (end <= self.ends[other])
        text, other, begin, end = text[fits], other[fits], begin[fits], end[fits]
        whole = self.passages(begin, end) == self.passages(self.starts[text], self.ends[text])
        pairs = np.sort(np.stack([text, other], 1)[whole], axis=1)
        return pairs, np.ones(len(pairs))

    def duplicates(self, found: Sequence[Found]) -> Duplicates:
        """Return all pairs of distinct texts that were found, each once, with its largest likeness."""
        every, likeness = (np.concatenate(parts) for parts in zip(*found, strict=True))
        pairs, which = np.unique(every, axis=0, return_inverse=True)
        largest = np.zeros(len(pairs))
        np.maximum.at(largest, which.ravel(), likeness)
        return Duplicates(self.distinct, pairs.reshape(-1, 2), largest)


def join_scenarios(scenarios: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Give scenarios with near-duplicate texts one name, so that a split by scenario keeps them on one side.

    Args:
        scenarios: Scenario id of each record.
        texts: Text of each record.

    Returns:
        For each record the smallest id among the scenarios that a chain of near-duplicates joins: its own id if nothing is
        near. A scenario that joins later therefore changes the name only if its id is smaller.
    """
    found = find_duplicates(texts)
    names, codes = np.unique(np.array(scenarios, dtype=object), return_inverse=True)
    held = found.distinct >= 0
    edges = np.concatenate([np.stack([codes[held], found.distinct[held] + len(names)], 1), found.pairs + len(names)])
    size = len(names) + int(found.distinct.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(size, size))
    groups = connected_components(graph, directed=False)[1][: len(names)]
    smallest = dict(
        zip(groups[::-1].tolist(), names[::-1].tolist(), strict=True)
    )  # names are sorted: the last entry wins
    return [smallest[groups[code]] for code in codes]


def nearest_seen(texts: Sequence[str], seen: Sequence[str]) -> list[int | None]:
    """Find for each text a text that was seen before and equals or nearly equals it.

    Args:
        texts: Texts of an evaluation split.
        seen: Texts that the system has seen.

    Returns:
        For each text the index of the most alike seen text, of equals the first; None if no seen text is near.
    """
    found = find_duplicates([*seen, *texts])
    first: dict[int, int] = {}
    for index, distinct in enumerate(found.distinct[: len(seen)].tolist()):
        first.setdefault(distinct, index)
    near = found.neighbors()
    nearest: list[int | None] = []
    for distinct in found.distinct[len(seen) :].tolist():
        alike = {distinct: 1.0, **near[distinct]} if distinct >= 0 else {}
        # An equal text comes before a text that holds the whole text.
        candidates = [(other != distinct, -alike[other], first[other]) for other in alike if other in first]
        nearest.append(min(candidates)[2] if candidates else None)
    return nearest


def _word_hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest())


def _texts_per(keys: NDArray[np.generic], owners: Ints) -> Ints:
    """Return for each entry ``[n]`` how many different texts hold its key."""
    order = np.lexsort((owners, keys))
    changed = np.ones(len(keys), bool)
    changed[1:] = keys[order][1:] != keys[order][:-1]
    another = changed.copy()
    another[1:] |= owners[order][1:] != owners[order][:-1]
    which = np.cumsum(changed) - 1
    counts = np.bincount(which, another)[which].astype(np.int64) if len(keys) else np.zeros(0, np.int64)
    aligned = np.empty_like(counts)
    aligned[order] = counts
    return aligned


def _pairs_within(
    keys: Hashes, owners: Ints, shares: NDArray[np.float64], few: int
) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Return the pairs of texts that share a key held by ``few`` texts at most.

    Returns:
        The first text, the second text, and the smaller of their ``shares``; a pair comes once for each shared key.
    """
    order = np.lexsort((shares, owners, keys))
    keys, owners, shares = keys[order], owners[order], shares[order]
    once = np.ones(len(keys), bool)
    once[1:] = (keys[1:] != keys[:-1]) | (owners[1:] != owners[:-1])
    keys, owners, shares = keys[once], owners[once], shares[once]
    sizes = np.unique(keys, return_counts=True)[1]
    held = np.repeat(sizes, sizes)
    some = (held > 1) & (held <= few)
    keys, owners, shares = keys[some], owners[some], shares[some]
    steps = [(np.flatnonzero(keys[step:] == keys[:-step]), step) for step in range(1, few)]
    first = np.concatenate([at for at, _ in steps])
    second = np.concatenate([at + step for at, step in steps])
    return owners[first], owners[second], np.minimum(shares[first], shares[second])
