"""A corpus as a language model sees it: rows of token ids, split into training and held-out rows by document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int

from llcjax.tokens import token_rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SEPARATOR = "<|endoftext|>"
"""The token that a tokenizer of ours puts first in a document, and that starts each row."""


class Corpus(NamedTuple):
    """Rows of token ids; each starts with the token of a beginning."""

    train: Int[np.ndarray, "row token"]
    held_out: Int[np.ndarray, "row token"]
    vocabulary: int
    """Number of different tokens."""


def make_corpus(
    documents: Sequence[np.ndarray],
    *,
    vocabulary: int,
    row_length: int = 1024,
    start: int = 0,
    held_out: float = 0.05,
    seed: int = 0,
) -> Corpus:
    """Splits documents at random, lays those of each side end to end and cuts them into rows.

    A row is the token `start` and `row_length - 1` tokens of the stream; what is left at the end of a side is dropped
    (arXiv 2402.02364 and its code cut the Pile like this, into 1,023 tokens).

    Args:
        documents: token ids of each document.
        vocabulary: number of different tokens.
        row_length: tokens of a row, `start` included.
        start: the token that starts each row.
        held_out: share of the documents that training never sees.
        seed: of the split.

    Raises:
        ValueError: an id outside the vocabulary, a share outside (0, 1), or too little text for a row on each side.

    Example:
        >>> corpus = make_corpus([np.arange(1, 9)] * 4, vocabulary=9, row_length=5, held_out=0.25)
        >>> corpus.train.shape, corpus.held_out.tolist()
        ((6, 5), [[0, 1, 2, 3, 4], [0, 5, 6, 7, 8]])
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out:g} must be above 0 and below 1, a share of the documents.")
    if len(documents) < 2:
        raise ValueError(f"the text has {len(documents)} documents; give at least 2, so that one can be held out.")
    largest = max(int(document.max(initial=0)) for document in documents)
    if max(largest, start) >= vocabulary:
        raise ValueError(f"vocabulary={vocabulary}, but the text has the token {max(largest, start)}; raise it.")
    order = np.random.default_rng(seed).permutation(len(documents))
    count = min(max(round(held_out * len(documents)), 1), len(documents) - 1)
    sides = {"held-out": np.sort(order[:count]), "training": np.sort(order[count:])}
    rows, kind = {}, np.uint16 if vocabulary <= 2**16 else np.int32
    for name, chosen in sides.items():
        stream = np.concatenate([documents[i] for i in chosen])
        if len(stream) < row_length - 1:
            raise ValueError(f"the {name} documents do not fill a row of {row_length} tokens; give more text.")
        rows[name] = token_rows(stream, row_length, start=start).astype(kind)
    return Corpus(rows["training"], rows["held-out"], vocabulary)


def split_at(tokens: np.ndarray, start: int) -> list[np.ndarray]:
    """The documents of a stream in which a token begins each of them; the token stays with its document.

    Example:
        >>> [part.tolist() for part in split_at(np.array([0, 5, 6, 0, 7]), 0)]
        [[0, 5, 6], [0, 7]]
    """
    cuts = np.flatnonzero(tokens == start)
    return [part for part in np.split(tokens, cuts) if part.size]


def installed_text() -> list[str]:
    """The help topics that every Python installation carries (`pydoc_data.topics`), one document each."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def read_texts(paths: Sequence[Path | str]) -> list[str]:
    """Documents of text files: one a file; a single file is cut at blank lines into pieces of 2,000 characters or more.

    Raises:
        ValueError: a file that cannot be read as UTF-8.
    """
    texts = []
    for path in paths:
        try:
            texts.append(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"text={path} cannot be read as UTF-8 ({error}); give text files.") from None
    return texts if len(texts) != 1 else _pieces(texts[0])


def _pieces(text: str, least: int = 2000) -> list[str]:
    pieces, size = [[]], 0
    for paragraph in text.split("\n\n"):
        if size >= least:
            pieces.append([])
            size = 0
        pieces[-1].append(paragraph)
        size += len(paragraph) + 2
    return ["\n\n".join(piece) for piece in pieces]


def read_dataset(folder: Path | str, column: str = "text") -> list[str]:
    """Documents of a Hugging Face dataset on disk: a folder of `.arrow` files (`save_to_disk`) or of `.parquet` files.

    Raises:
        ValueError: no such files, no such column, or pyarrow is not installed.
    """
    try:
        from pyarrow import ipc, memory_map, parquet
    except ImportError:
        raise ValueError("reading a dataset folder needs the extra: pip install 'llcjax[arrow]'.") from None
    folder = Path(folder)
    files = sorted([*folder.rglob("*.arrow"), *folder.rglob("*.parquet")])
    if not files:
        raise ValueError(f"dataset={folder} has no .arrow or .parquet files; give a folder of `save_to_disk`.")
    texts: list[str] = []
    for file in files:
        if file.suffix == ".parquet":
            table = parquet.read_table(file)
        else:
            with memory_map(str(file)) as source:
                table = ipc.open_stream(source).read_all()
        if column not in table.column_names:
            raise ValueError(f"column={column!r} is not in {file}; it has {', '.join(table.column_names)}.")
        texts += [text for text in table[column].to_pylist() if text]
    return texts


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens; token 0 is the beginning of a document.

    Raises:
        ValueError: fewer than 257 tokens (one a byte, and the beginning), or tokenizers is not installed.
    """
    if vocabulary < 257:
        raise ValueError(f"vocabulary={vocabulary} is too small for a byte-level tokenizer; give at least 257.")
    tokenizers = _tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path | str) -> Tokenizer:
    """A tokenizer from its JSON file.

    Raises:
        ValueError: the file cannot be read, or tokenizers is not installed.
    """
    try:
        return _tokenizers().Tokenizer.from_file(str(path))
    except ValueError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"tokenizer={path} cannot be read ({error}); give a tokenizer.json.") from None


def encode(tokenizer: Tokenizer, texts: Sequence[str], start: int = 0) -> list[np.ndarray]:
    """Token ids of each document, after the token `start`."""
    return [np.array([start, *found.ids], np.int32) for found in tokenizer.encode_batch(list(texts))]


def _tokenizers():  # noqa: ANN202  (the module itself)
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError:
        raise ValueError("texts need the extra: pip install 'llcjax[text]'.") from None
    return tokenizers
