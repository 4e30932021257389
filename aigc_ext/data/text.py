"""Pairs of texts, such as a story and its headline, as rows of tokens; and the vocabulary of these tokens."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from aigc_ext import _files
from aigc_ext.data.dataset import BadFile, Dataset, DatasetError

PAD, SEPARATOR, END = 0, 1, 2
"""The tokens of every vocabulary that stand for no text."""
_SPECIAL = ("<pad>", "<separator>", "<end>")
_BYTES = 256
SMALLEST_VOCABULARY = len(_SPECIAL) + _BYTES
"""With fewer tokens not every text could be written."""


class Vocabulary:
    """Byte pair encoding of the bytes of UTF-8, so that it can write any text, by the library `tokenizers`
    (Sennrich, Haddow, Birch 2016, "Neural machine translation of rare words with subword units").

    Make one with `learn` or `from_json`.

    Raises:
        DatasetError: the library is not installed.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # "<end>" in a text is these five letters
        tokenizer.no_padding()
        tokenizer.no_truncation()

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> Vocabulary:
        """Of at most `size` tokens, from texts; the same for the same texts and version of the library.

        Raises:
            ValueError: `size` is too small.
        """
        if size < SMALLEST_VOCABULARY:
            raise ValueError(
                f"a vocabulary of {size} tokens is asked for, but it must have at least "
                f"{SMALLEST_VOCABULARY}: one for each byte, and three that stand for no text"
            )
        tokenizers = _library()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            show_progress=False,
            special_tokens=list(_SPECIAL),
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """From the JSON of `tokenizers.Tokenizer.to_str`.

        Raises:
            ValueError: it is not that of a vocabulary of this module.
        """
        tokenizers = _library()
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises no narrower one
            raise ValueError(f"the tokenizer can't be read: {error}") from error
        if [tokenizer.token_to_id(name) for name in _SPECIAL] != [PAD, SEPARATOR, END]:
            raise ValueError(f"the tokenizer must have the tokens {', '.join(_SPECIAL)}, numbered from 0")
        return cls(tokenizer)

    def to_json(self) -> str:
        return str(self._tokenizer.to_str())

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def tokens(self) -> list[str]:
        """What each token stands for, in the library's notation: equal ones are the same bytes."""
        numbers = self._tokenizer.get_vocab()
        return sorted(numbers, key=numbers.__getitem__)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text."""
        return [each.ids for each in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; PAD, SEPARATOR and END have none. Bytes that are no UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def row(self, source: Sequence[int], target: Sequence[int], lengths: tuple[int, int]) -> list[int]:
        """The row of a pair, see `TextPairs`."""
        row = [*source[: lengths[0]], SEPARATOR, *target[: lengths[1]], END]
        return row + [PAD] * (sum(lengths) + 2 - len(row))

    def begin(self, source: str, most: int) -> list[int]:
        """What the row of a source begins with, of which at most so many tokens are read."""
        return [*self.encode([source])[0][:most], SEPARATOR]

    def padded(self, text: str, length: int) -> list[int]:
        """A text in exactly so many tokens: cut off, or with PAD at its end."""
        tokens = self.encode([text])[0][:length]
        return tokens + [PAD] * (length - len(tokens))

    def target_of(self, row: Sequence[int]) -> str:
        """The text between the first SEPARATOR and the next END of a row."""
        tokens = list(row)
        tokens = tokens[tokens.index(SEPARATOR) + 1 :] if SEPARATOR in tokens else []
        return self.decode(tokens[: tokens.index(END)] if END in tokens else tokens).strip()


class Pair(NamedTuple):
    """A text, and what is to be written for it."""

    source: str
    target: str


class TextPairs(Dataset):
    """Pairs of texts as rows of tokens: source, SEPARATOR, target, END, and PAD up to the length of all rows.
    Longer texts are cut off.

    It is known by its texts. `tokenize` comes before `read`: the vocabulary may be learned from some of them.

    Args:
        lengths: the most tokens of a source and of a target.
    """

    kind: Literal["text"] = "text"
    item = "pair"

    def __init__(
        self,
        name: str,
        pairs: Sequence[Pair],
        lengths: tuple[int, int] = (96, 30),
        bad_files: Sequence[BadFile] = (),
    ) -> None:
        super().__init__(name, len(pairs), (sum(lengths) + 2,), None)
        self.pairs = list(pairs)
        self.lengths = lengths
        self._bad_files = tuple(bad_files)
        self._rows: Tensor | None = None

    def tokenize(self, vocabulary: Vocabulary) -> None:
        """Makes the rows, and remarks of what is cut off."""
        sides = [vocabulary.encode(side) for side in zip(*self.pairs, strict=True)]
        pairs = zip(sides[0], sides[1], strict=True)
        rows = [vocabulary.row(source, target, self.lengths) for source, target in pairs]
        self._rows = torch.tensor(rows, dtype=torch.int32)
        cut = [
            (sum(len(tokens) > most for tokens in side), most, what)
            for side, most, what in zip(sides, self.lengths, ("source", "target"), strict=True)
        ]
        self.remarks = tuple(
            f"{self.name}: {count} of {len(self)} {what}s are cut off after {most} tokens"
            for count, most, what in cut
            if count
        )

    def texts(self, indices: Iterable[int]) -> Iterator[str]:
        """Both texts of each of these pairs."""
        for index in indices:
            yield from self.pairs[index]

    def _read_items(self, index: Tensor) -> tuple[Tensor, Tensor]:
        if self._rows is None:
            raise RuntimeError(f"{self.name} has no tokens yet: call tokenize before its rows are read")
        return self._rows.index_select(0, index).to(torch.int64), index

    def _content(self) -> Iterator[bytes]:
        for pair in self.pairs:
            yield "\0".join(pair).encode()


def open_pairs(
    path: str | os.PathLike[str],
    *,
    lengths: tuple[int, int] = (96, 30),
    on_bad: Literal["raise", "skip"] = "raise",
    max_left_out: float = 1.0,
    name: str | None = None,
) -> TextPairs:
    """Opens a file of pairs: in each line a JSON object with the strings `source` and `target`, in UTF-8.

    Args:
        lengths, name: as for `TextPairs`; by default the file's name.
        on_bad: "raise" rejects a file with bad lines; "skip" leaves them out, and lists them in `bad_files`.
        max_left_out: the largest fraction of the lines that may be left out.

    Raises:
        DatasetError: the file can't be read, has no good line, or bad ones that must not be left out; it
            names each line, and what is wrong with it.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DatasetError(f"{path} can't be read: {error.strerror}") from error
    pairs, bad = [], []
    lines = lines[:-1] if lines[-1] == b"" else lines
    for number, line in enumerate(lines, 1):
        try:
            pairs.append(_pair(line))
        except ValueError as error:
            bad.append(BadFile(f"line {number}", str(error)))
    if bad and (on_bad == "raise" or len(bad) > max_left_out * len(lines)):
        allowed = "" if on_bad == "raise" else f", more than the fraction {max_left_out:g} that is allowed"
        raise DatasetError(f"{path}: {len(bad)} of {len(lines)} lines are no pairs{allowed}:", bad)
    if not pairs:
        raise DatasetError(f"{path}: there are no pairs in it")
    return TextPairs(path.stem if name is None else name, pairs, lengths, bad)


def _pair(line: bytes) -> Pair:
    try:
        found = _files.parse_json(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"is {line.decode()[:40]}, but must be an object with source and target")
    for key in Pair._fields:
        value = found.get(key)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{key} is {value!r:.60}, but must be a text that is not empty")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{key} has half of a surrogate pair, which is no character")
    return Pair(found["source"], found["target"])


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ModuleNotFoundError as error:
        raise DatasetError(
            "texts are read with the library tokenizers, which is not installed: pip install aigc_ext[text]"
        ) from error
    return tokenizers
