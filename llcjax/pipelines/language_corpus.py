"""The rows of a language experiment, whatever they come from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llcjax.keys import as_key
from llcjax.pipelines.language_config import LanguageExperiment
from llcjax.tasks.corpus import (
    Corpus,
    encode,
    installed_text,
    load_tokenizer,
    make_corpus,
    read_dataset,
    read_texts,
    split_at,
    train_tokenizer,
)
from llcjax.tokens import read_tokens


class Rows(NamedTuple):
    """Rows on both sides, and how a token is written."""

    corpus: Corpus
    word: Callable[[int], str]


def load_rows(experiment: LanguageExperiment) -> Rows:
    """The rows of an experiment.

    Raises:
        ValueError: files that cannot be read, none or several that are named, or too little text.
    """
    if experiment.source == "synthetic":
        return Rows(_synthetic(experiment), str)
    named = [name for name in ("text", "tokens", "dataset") if getattr(experiment, name)]
    if len(named) > 1 or (not named and experiment.source == "given"):
        raise ValueError(f"{' and '.join(named) or 'none'} of text, tokens and dataset is named; name one of them.")
    fields = ("text", "tokens", "dataset", "column", "tokenizer", "start", "held_out", "split_seed")
    return _read(
        experiment.model.vocabulary, experiment.model.num_tokens, *(getattr(experiment, name) for name in fields)
    )


@functools.lru_cache(maxsize=1)  # parts of one experiment share their rows
def _read(
    vocabulary: int,
    row_length: int,
    text: tuple[str, ...],
    tokens: str | None,
    dataset: str | None,
    column: str,
    tokenizer_file: str | None,
    start: int,
    held_out: float,
    seed: int,
) -> Rows:
    tokenizer = None if tokenizer_file is None else load_tokenizer(tokenizer_file)
    if tokens is not None:
        documents = _documents(read_tokens(tokens), start)
    else:
        texts = _texts(text, dataset, column)
        tokenizer = tokenizer or train_tokenizer(texts, vocabulary)
        documents = encode(tokenizer, texts, start)
    corpus = make_corpus(
        documents, vocabulary=vocabulary, row_length=row_length, start=start, held_out=held_out, seed=seed
    )
    return Rows(corpus, str if tokenizer is None else lambda token: tokenizer.decode([token]) or str(token))


def _texts(text: tuple[str, ...], dataset: str | None, column: str) -> list[str]:
    if dataset is not None:
        return read_dataset(dataset, column)
    return read_texts(text) if text else installed_text()


def _documents(tokens: np.ndarray, start: int) -> list[np.ndarray]:
    """The documents of a stream, or the rows of an array of rows."""
    return split_at(tokens, start) if tokens.ndim == 1 else list(tokens.reshape(len(tokens), -1))


def _synthetic(experiment: LanguageExperiment) -> Corpus:
    language, seed = experiment.synthetic, 2 * experiment.split_seed
    sides = ((seed, experiment.num_rows), (seed + 1, experiment.num_test_rows))
    train, held_out = (np.asarray(language.sample(as_key(key), count), np.uint16) for key, count in sides)
    return Corpus(train, held_out, language.vocabulary)
