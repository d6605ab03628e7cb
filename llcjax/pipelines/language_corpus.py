"""The rows of a language experiment, whatever they come from."""

from __future__ import annotations

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
    model = experiment.model
    if experiment.tokens is not None:
        documents = _documents(read_tokens(experiment.tokens), experiment.start)
        tokenizer = None if experiment.tokenizer is None else load_tokenizer(experiment.tokenizer)
    else:
        texts = _texts(experiment)
        given = experiment.tokenizer
        tokenizer = train_tokenizer(texts, model.vocabulary) if given is None else load_tokenizer(given)
        documents = encode(tokenizer, texts, experiment.start)
    corpus = make_corpus(
        documents,
        vocabulary=model.vocabulary,
        row_length=model.num_tokens,
        start=experiment.start,
        held_out=experiment.held_out,
        seed=experiment.split_seed,
    )
    return Rows(corpus, str if tokenizer is None else lambda token: tokenizer.decode([token]) or str(token))


def _texts(experiment: LanguageExperiment) -> list[str]:
    if experiment.dataset is not None:
        return read_dataset(experiment.dataset, experiment.column)
    return read_texts(experiment.text) if experiment.text else installed_text()


def _documents(tokens: np.ndarray, start: int) -> list[np.ndarray]:
    """The documents of a stream, or the rows of an array of rows."""
    return split_at(tokens, start) if tokens.ndim == 1 else list(tokens.reshape(len(tokens), -1))


def _synthetic(experiment: LanguageExperiment) -> Corpus:
    language, seed = experiment.synthetic, 2 * experiment.split_seed
    sides = ((seed, experiment.num_rows), (seed + 1, experiment.num_test_rows))
    train, held_out = (np.asarray(language.sample(as_key(key), count), np.uint16) for key, count in sides)
    return Corpus(train, held_out, language.vocabulary)
