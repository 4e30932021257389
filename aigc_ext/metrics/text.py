"""How much a written text has in common with a reference."""

from __future__ import annotations

import re
from collections.abc import Sequence


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L: of the longest common subsequence of words, the harmonic mean of its shares of both texts, in
    [0, 1]; higher is better (Lin 2004, "ROUGE: a package for automatic evaluation of summaries").

    Words are lower-case letters and digits of ASCII, without stemming, as in the package `rouge-score`.
    """
    ours, theirs = _words(text), _words(reference)
    if not ours or not theirs:
        return 0.0
    common = _common(ours, theirs)
    return 2 * common / (len(ours) + len(theirs))  # the harmonic mean of common / len of each


def mean_rouge_l(texts: Sequence[str], references: Sequence[str]) -> float:
    """The mean of `rouge_l` over pairs.

    Raises:
        ValueError: there are none, or not as many texts as references.
    """
    if len(texts) != len(references) or not texts:
        raise ValueError(
            f"there are {len(texts)} texts and {len(references)} references, but there must be as many of "
            "both, and at least one"
        )
    return sum(map(rouge_l, texts, references)) / len(texts)


def first_words(text: str, count: int = 12) -> str:
    """The baseline of a summary: the text's first words."""
    return " ".join(text.split()[:count])


def _words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0  # of the last row, one place to the left
        for place, candidate in enumerate(other, 1):
            above = row[place]
            row[place] = before + 1 if word == candidate else max(above, row[place - 1])
            before = above
    return row[-1]
