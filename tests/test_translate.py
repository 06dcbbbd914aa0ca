"""experiments/translate.py: data, tokenization and the model."""

import gzip

import numpy as np
import pytest
from tinygrad import Tensor

from experiments.translate import CONTEXT, Translator, encode, read_pairs, read_sentences
from tinyformer import cli
from tinyformer.generation.engine import last_hidden_state
from tinyformer.generation.kv_cache import EncoderDecoderCache
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding


def test_decoder_inputs_are_targets_shifted_right_and_long_pairs_are_left_out():
  tokenizer = BytePairEncoding.train(["a b"], 257)
  end, pad = 256, 257
  pairs = [("uv", "wxyz"), ("much too long", "a"), ("a", "much too long")]
  source, decoder_input, target = encode(tokenizer, pairs, 7)
  german, english = tokenizer.encode(" uv"), tokenizer.encode(" wxyz")
  assert source.tolist() == [[*german, pad, pad, pad, pad]]
  assert decoder_input.tolist() == [[end, *english, pad]]
  assert target.tolist() == [[*english, end, -1]]


def test_plain_and_gzipped_files_are_read_with_their_empty_lines(tmp_path):
  (tmp_path / "val.de").write_text("Ein Mann.\n\nÄh.\n", encoding="utf-8")
  (tmp_path / "val.en.gz").write_bytes(gzip.compress("A man.\n\nEr\u2028r.".encode()))
  assert read_pairs(tmp_path, "val") == [("Ein Mann.", "A man."), ("", ""), ("Äh.", "Er\u2028r.")]


@pytest.mark.parametrize(
  "data",
  [gzip.compress(b"A man.\n" * 99)[:-9], b"A man.\n", gzip.compress(b"\xff\xfe\n")],
  ids=["truncated", "not gzipped", "not UTF-8"],
)
def test_a_damaged_file_raises_an_error_that_names_it(tmp_path, data):
  (tmp_path / "val.de.gz").write_bytes(data)
  with pytest.raises(ValueError, match=r"val\.de\.gz is not a complete UTF-8 text"):
    read_sentences(tmp_path, "val.de")


def test_missing_files_and_unequal_numbers_of_sentences_are_errors(tmp_path):
  (tmp_path / "val.de").write_text("Eins.\nZwei.\n")
  with pytest.raises(cli.UsageError, match=r"val\.en\.gz exists.*Multi30k"):
    read_pairs(tmp_path, "val")
  (tmp_path / "val.en").write_text("One.\n")
  with pytest.raises(ValueError, match=r"val\.de has 2 sentences, but val\.en has 1"):
    read_pairs(tmp_path, "val")


def test_source_padding_and_the_kv_cache_do_not_change_the_logits():
  model = Translator(19, 16, 2, 24, 1, 0.0)
  rng = np.random.default_rng(0)
  source, target = rng.integers(0, 17, (1, 5)), rng.integers(0, 17, (1, 4))
  expected = model(Tensor(source), Tensor(target)).numpy()
  padded = np.pad(source, ((0, 0), (0, 3)), constant_values=18)
  assert np.allclose(model(Tensor(padded), Tensor(target)).numpy(), expected, atol=1e-4)
  attention_mask = Tensor(padded != 18)
  cache = EncoderDecoderCache.for_source(model, Tensor(padded), attention_mask, 1, CONTEXT)
  chunks = []
  for start, end in ((0, 3), (3, 4)):
    x = last_hidden_state(model, Tensor(target[:, start:end]), cache)
    chunks.append(model.head(x).numpy())
  assert np.allclose(np.concatenate(chunks, 1), expected, atol=1e-4)
