"""Pairs of texts and their tokens."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from aigc_ext.data import DatasetError, split
from aigc_ext.data.text import END, PAD, SEPARATOR, Pair, TextPairs, Vocabulary, open_pairs

pytest.importorskip("tokenizers")

TEXTS = ["the cat sat on the mat", "a dog and a cat", "naïve Straße 日本 <end> 🙂", "<pad><separator>"] * 3


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.learn(TEXTS, 280)


def test_every_text_can_be_written(vocabulary):
    texts = [*TEXTS[:4], "never seen: Ж\n\ttab", "", " spaces  stay "]
    for text, tokens in zip(texts, vocabulary.encode(texts), strict=True):
        assert vocabulary.decode(tokens) == text
        assert not {PAD, SEPARATOR, END} & set(tokens), "a text cannot write what stands for no text"
    assert 259 < len(vocabulary) <= 280
    assert len(vocabulary.encode(["the cat"])[0]) < 7


def test_it_is_learned_alike_twice_and_stored(vocabulary):
    assert Vocabulary.learn(TEXTS, 280).to_json() == vocabulary.to_json()
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again.encode(TEXTS) == vocabulary.encode(TEXTS)
    assert len(again) == len(vocabulary)


def test_rows_are_source_separator_target_end(vocabulary):
    data = TextPairs(
        "pairs", [Pair("a cat", "cat"), Pair("the cat sat on the mat", "a dog and a cat")], (4, 3)
    )
    with pytest.raises(RuntimeError, match="pairs has no tokens yet: call tokenize"):
        data.read([0])
    data.tokenize(vocabulary)
    rows, labels = data.read([1, 0])
    assert rows.dtype == torch.int64
    assert rows.shape == (2, 4 + 3 + 2)
    assert labels.tolist() == [0, 0]
    source, target = vocabulary.encode(["a cat", "cat"])
    expected = [*source, SEPARATOR, *target[:3], END]
    assert rows[1].tolist() == expected + [PAD] * (9 - len(expected))
    long = rows[0].tolist()
    assert long[:4] == vocabulary.encode(["the cat sat on the mat"])[0][:4]
    assert (long[4], long[8]) == (SEPARATOR, END)
    assert vocabulary.target_of(rows[1].tolist()) == vocabulary.decode(target[:3])
    assert vocabulary.target_of([5, 6]) == ""
    assert data.remarks[0] == "pairs: 1 of 2 sources are cut off after 4 tokens"
    assert (data.kind, data.item) == ("text", "pair")


def test_pairs_are_known_by_their_texts(vocabulary):
    pairs = [Pair(f"source {n}", f"target {n}") for n in range(20)]
    data, other = TextPairs("one", pairs), TextPairs("other", pairs[::-1])
    before = data.content_hash()
    data.tokenize(vocabulary)
    assert TextPairs("one", pairs).content_hash() == before == data.content_hash()
    assert other.content_hash() != before
    training, held = split(data, 0.2, 3)
    assert len(training) == 16
    both = torch.cat([training.read(range(16))[0], held.read(range(4))[0]])
    assert {tuple(row) for row in both.tolist()} == {tuple(row) for row in data.read(range(20))[0].tolist()}
    assert list(data.texts([1])) == ["source 1", "target 1"]


def test_a_file_of_pairs(tmp_path):
    path = tmp_path / "news.jsonl"
    good = [{"source": "Straße", "target": "x", "more": 1}, {"source": "b", "target": "y"}]
    path.write_bytes("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in good).encode().rstrip())
    data = open_pairs(path)
    assert data.name == "news"
    assert data.pairs == [Pair("Straße", "x"), Pair("b", "y")]
    assert data.bad_files == ()


BAD = {
    b'{"source": "a"}': "line 2: target is None, but must be a text that is not empty",
    b'{"source": " ", "target": "x"}': "line 2: source is ' ', but must be a text",
    b'{"source": 3, "target": "x"}': "line 2: source is 3, but must be a text",
    b"[1]": r"line 2: is \[1\], but must be an object with source and target",
    b"{": "line 2: is not JSON",
    b"": "line 2: is not JSON",
    b'"\xff"': "line 2: is not UTF-8 at byte 1",
    rb'{"source": "\ud800", "target": "x"}': "line 2: source has half of a surrogate pair",
}


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_each_bad_line_is_named(line, tmp_path):
    path = tmp_path / "pairs.jsonl"
    fine = b'{"source": "a", "target": "b"}\n'
    path.write_bytes(fine + line + b"\n" + fine)
    with pytest.raises(DatasetError, match="1 of 3 lines are no pairs:\n  " + BAD[line]):
        open_pairs(path)
    with pytest.raises(DatasetError, match=r"more than the fraction 0\.1 that is allowed"):
        open_pairs(path, on_bad="skip", max_left_out=0.1)
    data = open_pairs(path, on_bad="skip", max_left_out=0.5)
    assert (len(data), [bad.name for bad in data.bad_files]) == (2, ["line 2"])


def test_files_without_pairs(tmp_path):
    with pytest.raises(DatasetError, match=r"missing.jsonl can't be read: No such file"):
        open_pairs(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DatasetError, match="there are no pairs in it"):
        open_pairs(tmp_path / "empty.jsonl")


def test_what_is_no_vocabulary():
    with pytest.raises(
        ValueError, match="a vocabulary of 258 tokens is asked for, but it must have at least 259"
    ):
        Vocabulary.learn(TEXTS, 258)
    with pytest.raises(ValueError, match="the tokenizer can't be read"):
        Vocabulary.from_json("[]")
    import tokenizers

    plain = tokenizers.Tokenizer(tokenizers.models.BPE()).to_str()
    with pytest.raises(ValueError, match="must have the tokens <pad>, <separator>, <end>"):
        Vocabulary.from_json(plain)


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DatasetError, match=r"pip install aigc_ext\[text\]"):
        Vocabulary.learn(TEXTS, 280)
