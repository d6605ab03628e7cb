"""Token files, the corpus and the synthetic language."""

import itertools
import lzma

import jax
import numpy as np
import pytest
import zarr

from llcjax.tasks.corpus import (
    encode,
    installed_text,
    load_tokenizer,
    make_corpus,
    read_dataset,
    read_texts,
    split_at,
    train_tokenizer,
)
from llcjax.tasks.synthetic_language import SyntheticLanguage
from llcjax.tokens import read_tokens


def test_every_format_gives_the_same_tokens(tmp_path):
    tokens = np.array([0, 7, 4999, 3], "<u2")
    np.save(tmp_path / "a.npy", tokens.reshape(2, 2))
    (tmp_path / "a.u16").write_bytes(tokens.tobytes())
    (tmp_path / "a.u16.xz").write_bytes(lzma.compress(tokens.tobytes()))
    zarr.save_array(tmp_path / "a.zarr", tokens)
    for name in ("a.npy", "a.u16", "a.u16.xz", "a.zarr"):
        np.testing.assert_array_equal(read_tokens(tmp_path / name).reshape(-1), tokens)


def test_bad_token_files_end_in_a_sentence(tmp_path):
    (tmp_path / "a.u16.xz").write_bytes(b"nonsense")
    np.save(tmp_path / "float.npy", np.ones(3))
    for name, words in (("a.u16.xz", "cannot be read"), ("b.npy", "cannot be read"), ("float.npy", "float64")):
        with pytest.raises(ValueError, match=words):
            read_tokens(tmp_path / name)


def test_no_document_is_on_both_sides():
    documents = [np.full(9, word) for word in range(1, 21)]
    corpus = make_corpus(documents, vocabulary=21, row_length=10, held_out=0.2)
    assert corpus.train.shape == (16, 10) and corpus.held_out.shape == (4, 10) and corpus.train.dtype == np.uint16
    assert (corpus.train[:, 0] == 0).all() and (corpus.held_out[:, 0] == 0).all()
    assert {*corpus.train[:, 1:].flat} ^ {*corpus.held_out[:, 1:].flat} == set(range(1, 21))
    with pytest.raises(ValueError, match="vocabulary=20"):
        make_corpus(documents, vocabulary=20, row_length=10)
    with pytest.raises(ValueError, match="do not fill a row of 500"):
        make_corpus(documents, vocabulary=21, row_length=500)


def test_the_installed_text_goes_through_a_tokenizer_and_back(tmp_path):
    pytest.importorskip("tokenizers")
    texts = installed_text()[:20]
    tokenizer = train_tokenizer(texts, 400)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    documents = encode(load_tokenizer(tmp_path / "tokenizer.json"), texts)
    assert tokenizer.get_vocab_size() == 400 and all(document[0] == 0 for document in documents)
    assert [tokenizer.decode(document[1:].tolist()) for document in documents] == texts
    np.testing.assert_array_equal(np.concatenate(split_at(np.concatenate(documents), 0)), np.concatenate(documents))
    with pytest.raises(ValueError, match="vocabulary=100 is too small"):
        train_tokenizer(texts, 100)


def test_text_files_and_dataset_folders(tmp_path):
    (tmp_path / "one.txt").write_text("\n\n".join("line " * 300 for _ in range(6)))
    pieces = read_texts([tmp_path / "one.txt"])
    assert len(pieces) == 3 and "\n\n".join(pieces) == (tmp_path / "one.txt").read_text()
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"contents": ["first", "second", ""]})
    folder = tmp_path / "dataset"
    folder.mkdir()
    with pyarrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert read_dataset(folder, "contents") == ["first", "second"]
    with pytest.raises(ValueError, match="column='text' is not in"):
        read_dataset(folder)


TINY = SyntheticLanguage(num_words=2, num_tokens=6, shortest=2, longest=3, spread=1.0)


def test_optimal_losses_are_the_law_of_the_rows():
    # All rows of two words: probabilities of the best predictor must add up to 1, and be those of enumeration.
    rows = np.array([[0, *words] for words in itertools.product((1, 2), repeat=5)])
    table, start = TINY.table(), TINY.stationary()
    wanted = np.zeros(len(rows))
    for index, row in enumerate(rows - 1):
        words = row[1:]
        for length in (2, 3):
            if all(words[i] == words[i - length] for i in range(length, 5)):
                chain = [table[a, b] for a, b in itertools.pairwise(words[:length])]
                wanted[index] += 0.5 * start[words[0]] * np.prod(chain)
    with np.errstate(divide="ignore"):
        possible = wanted > 0
    assert wanted.sum() == pytest.approx(1)
    found = np.exp(-np.asarray(TINY.optimal_losses(jax.numpy.asarray(rows[possible]))).sum(1))
    np.testing.assert_allclose(found, wanted[possible], rtol=1e-4)


def test_the_table_alone_pays_its_entropy_on_repeats_too():
    language = SyntheticLanguage()
    tokens, lengths = (np.asarray(part) for part in language.sample_parts(jax.random.key(1), 4000))
    surprise = -np.log(language.table()[tokens[:, 1:-1] - 1, tokens[:, 2:] - 1])
    for part in (language.in_first(lengths), language.on_repeat(lengths)):
        chosen = np.asarray(part)[:, 1:-1]
        sums, counts = (surprise * chosen).sum(1), chosen.sum(1)
        mean = sums.sum() / counts.sum()
        error = np.std(sums - mean * counts) / counts.mean() / np.sqrt(len(tokens))
        assert abs(mean - language.bigram_entropy()) < 4 * error and error < 0.02
    assert language.bigram_entropy() == pytest.approx(2.96, abs=0.2)
    optimum, error = language.induction_optimum(1000)
    assert 0 < optimum < 0.3 and error < 0.02


def test_repeats_repeat():
    language = SyntheticLanguage()
    tokens, lengths = (np.asarray(part) for part in language.sample_parts(jax.random.key(0), 50))
    for row, length in zip(tokens, lengths, strict=True):
        np.testing.assert_array_equal(row[1 + length :], row[1 : len(row) - length])
    with pytest.raises(ValueError, match="so that a row of 64 holds a repeat"):
        SyntheticLanguage(longest=62)
