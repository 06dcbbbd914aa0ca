import gzip

import numpy as np
import pytest
from tinygrad import Tensor

from experiments.translate import CONTEXT, Translator, encode, paired, sentences
from tinyformer import cli
from tinyformer.generation.kv_cache import EncoderDecoderCache
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
from transformer import padding_mask


def test_what_is_written_is_what_is_read_one_place_later_and_padding_counts_nowhere():
  tokenizer = BytePairEncoding.train(["a b"], 257)
  end, pad, n = 256, 257, tokenizer.encode
  source, read, write = encode(
    tokenizer, [("uv", "wxyz"), ("much too long", "a"), ("a", "much too long")], 7
  )
  assert source.tolist() == [[*n(" uv"), pad, pad, pad, pad]]
  assert read.tolist() == [[end, *n(" wxyz"), pad]] and write.tolist() == [[*n(" wxyz"), end, -1]]


def test_files_are_read_line_by_line_also_empty_ones_and_gzipped(tmp_path):
  (tmp_path / "val.de").write_text("Ein Mann.\n\nÄh.\n", encoding="utf-8")
  (tmp_path / "val.en.gz").write_bytes(gzip.compress("A man.\n\nEr\u2028r.".encode()))
  assert paired(tmp_path, "val") == [("Ein Mann.", "A man."), ("", ""), ("Äh.", "Er\u2028r.")]


@pytest.mark.parametrize(
  "data",
  [gzip.compress(b"A man.\n" * 99)[:-9], b"A man.\n", gzip.compress(b"\xff\xfe\n")],
  ids=["cut short", "not gzipped", "not UTF-8"],
)
def test_damaged_files_are_refused_with_their_name(tmp_path, data):
  (tmp_path / "val.de.gz").write_bytes(data)
  with pytest.raises(ValueError, match="val.de.gz is not a whole UTF-8 text"):
    sentences(tmp_path, "val.de")


def test_files_that_do_not_belong_together_or_are_absent_are_refused(tmp_path):
  (tmp_path / "val.de").write_text("Eins.\nZwei.\n")
  with pytest.raises(cli.Usage, match="val.en is not there.*Multi30k"):
    paired(tmp_path, "val")
  (tmp_path / "val.en").write_text("One.\n")
  with pytest.raises(ValueError, match="2 German sentences and 1 English ones"):
    paired(tmp_path, "val")


def test_padding_of_the_source_and_the_cache_change_nothing():
  """The end of a target after its beginning, with the keys and values of a padded source, against the whole at once with one that is not."""
  model = Translator(19, 16, 2, 24, 1, 0.0)
  draw = np.random.default_rng(0)
  source, target = draw.integers(0, 17, (1, 5)), draw.integers(0, 17, (1, 4))
  plain = model(Tensor(source), Tensor(target)).numpy()
  padded = np.pad(source, ((0, 0), (0, 3)), constant_values=18)
  assert np.allclose(model(Tensor(padded), Tensor(target)).numpy(), plain, atol=1e-4)
  cache = EncoderDecoderCache(
    model.cross_kv(Tensor(padded), Tensor(padded != 18)),
    padding_mask(Tensor(padded != 18)),
    1,
    CONTEXT,
  )
  pieces = [
    model.head(model.last_hidden_state(Tensor(target[:, a:b]), a, cache)).numpy()
    for a, b in ((0, 3), (3, 4))
  ]
  assert np.allclose(np.concatenate(pieces, 1), plain, atol=1e-4)
