from __future__ import annotations

import random

import pytest

from aigc_ext.metrics.text import first_words, mean_rouge_l, rouge_l


def test_rouge_l_by_hand():
    # The examples of the paper, section 3.1: "police the gunman", and "the gunman".
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(2 / 4)
    assert rouge_l("A B", "a-b c d") == pytest.approx(2 * (1 * 0.5) / 1.5)
    assert rouge_l("", "a") == rouge_l("a", "?!") == 0
    assert mean_rouge_l(["a", "b"], ["a", "c"]) == 0.5
    with pytest.raises(ValueError, match="there are 1 texts and 2 references"):
        mean_rouge_l(["a"], ["a", "b"])


def test_it_is_that_of_rouge_score():
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer, rng = rouge_scorer.RougeScorer(["rougeL"]), random.Random(0)
    words = ["the", "Cat", "sat", "on", "mat-2", "(dog)", "naïve", "x", "."]
    for _ in range(60):
        text, reference = (" ".join(rng.choices(words, k=rng.randrange(12))) for _ in range(2))
        assert rouge_l(text, reference) == pytest.approx(scorer.score(reference, text)["rougeL"].fmeasure)


def test_first_words():
    assert first_words("a  b\nc d", 3) == "a b c"
