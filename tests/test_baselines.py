"""The baselines: Kneser-Ney against a direct implementation, discounts, xz and the command."""

import collections
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import baselines
from tinyformer import checkpoints, cli
from tinyformer.checkpoints import hub
from tinyformer.tasks import perplexity
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
from tinyformer.training.documents import read_documents, train_val_split


def markov_text(vocab_size: int, length: int, seed: int = 0) -> list[int]:
  """Return a text from a Markov chain with random, uneven transition probabilities."""
  rng = np.random.default_rng(seed)
  transitions = rng.dirichlet(np.full(vocab_size, 0.3), vocab_size)
  ids = [0]
  for _ in range(length - 1):
    ids.append(int(rng.choice(vocab_size, p=transitions[ids[-1]])))
  return ids


class NaiveKneserNey:
  """Kneser-Ney computed as in the docstring of baselines.KneserNey, with dictionaries."""

  def __init__(self, ids: list[int], vocab_size: int, order: int):
    self.vocab_size, self.order = vocab_size, order
    self.ngrams = [
      collections.Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
      for n in range(1, order + 1)
    ]

  def count(self, ngram: tuple[int, ...]) -> int:
    if len(ngram) == self.order:
      return self.ngrams[-1][ngram]
    return len({longer[0] for longer in self.ngrams[len(ngram)] if longer[1:] == ngram})

  def discount(self, n: int, count: int) -> float:
    counts = collections.Counter(self.count(ngram) for ngram in self.ngrams[n - 1])
    values = [-1.0]
    if all(counts[k] for k in (1, 2, 3, 4)):
      y = counts[1] / (counts[1] + 2 * counts[2])
      values = [0, *(k - (k + 1) * y * counts[k + 1] / counts[k] for k in (1, 2, 3))]
    return (values if min(values) >= 0 else [0, 0.5, 1, 1.5])[min(3, count)]

  def p(self, history: tuple[int, ...], w: int) -> float:
    n = len(history) + 1
    counts = [self.count((*history, v)) for v in range(self.vocab_size)]
    lower_order = self.p(history[1:], w) if history else 1 / self.vocab_size
    if not sum(counts):
      return lower_order
    discounts = [self.discount(n, c) for c in counts]
    return (counts[w] - discounts[w] + sum(discounts) * lower_order) / sum(counts)


@pytest.mark.parametrize(
  "vocab_size, length, order", [(4, 60, 2), (5, 200, 3), (6, 30, 1), (6, 300, 5)]
)
def test_probabilities_and_discounts_equal_those_of_the_naive_implementation(
  vocab_size, length, order
):
  ids = markov_text(vocab_size, length)
  model = baselines.KneserNey(np.array(ids), vocab_size, order)
  naive = NaiveKneserNey(ids, vocab_size, order)
  assert np.array(model.discounts) == pytest.approx(
    np.array([[naive.discount(n + 1, k) for k in range(4)] for n in range(order)])
  )
  text = ids[:6] + np.random.default_rng(1).integers(0, vocab_size, 10).tolist()
  expected = [naive.p(tuple(text[max(0, i - order + 1) : i]), w) for i, w in enumerate(text)]
  assert model(np.array(text)) == pytest.approx(expected, rel=1e-12)


def test_probabilities_sum_to_one_after_any_history():
  ids = markov_text(40, 3000)
  model = baselines.KneserNey(np.array(ids), 43)
  assert sum(tuple(d) != (0, 0.5, 1, 1.5) for d in model.discounts) >= 3
  random_history = np.random.default_rng(1).integers(0, 43, 9).tolist()
  for history in (ids[100:110], ids[:2], [], random_history, [*ids[50:60], 42]):
    total = sum(model(np.array([*history, w]))[-1] for w in range(43))
    assert total == pytest.approx(1, abs=1e-12)


def test_discounts_follow_the_paper_or_fall_back_to_constants():
  counts = np.repeat([1, 2, 3, 4, 9], [10, 5, 2, 1, 7])  # Y = 10 / (10 + 2 * 5) = 1/2
  assert baselines.discounts(counts) == pytest.approx(
    [0, 1 - 2 / 2 * 5 / 10, 2 - 3 / 2 * 2 / 5, 3 - 4 / 2 * 1 / 2]
  )
  no_count_of_3 = counts[counts != 3]
  negative_discount = np.repeat([1, 2, 3, 4], [1, 1, 9, 1])
  for degenerate in (no_count_of_3, negative_discount):
    assert baselines.discounts(degenerate).tolist() == [0, 0.5, 1, 1.5]


def test_5_grams_approach_the_entropy_of_a_second_order_markov_chain():
  """Two tokens determine three equally likely next tokens: an entropy of log2(3) bits."""
  rng = np.random.default_rng(0)
  successors = rng.permuted(np.tile(np.arange(8), (64, 1)), axis=1)[:, :3]
  ids = [0, 1]
  for _ in range(22_000):
    ids.append(int(rng.choice(successors[ids[-2] * 8 + ids[-1]])))
  text = np.array(ids)

  def bits(order):
    return -np.log2(baselines.KneserNey(text[:20_000], 8, order)(text[20_000:])[5:]).mean()

  assert bits(5) == pytest.approx(math.log2(3), abs=0.08)
  assert bits(3) == pytest.approx(math.log2(3), abs=0.02)
  assert bits(2) > 2.5


def test_a_text_shorter_than_the_order_is_an_error():
  with pytest.raises(ValueError, match="a text of 4 tokens contains no 5-gram"):
    baselines.KneserNey(np.arange(4), 4)


def test_xz_uses_the_training_text_within_its_window():
  # 16 equally likely bytes have an entropy of half a byte each.
  noise = np.random.default_rng(0).integers(97, 113, 30_000).astype(np.uint8).tobytes()
  assert baselines.xz_size(noise, noise[:2000])[0] < 50
  assert 950 < baselines.xz_size(noise, noise[:2000][::-1])[0] < 1250
  # The validation text may refer to itself.
  assert baselines.xz_size(b"", noise[:2000] * 2)[0] < 1250
  outside_window = baselines.xz_size(noise, noise[:2000], max_window=20_000)
  assert outside_window == (pytest.approx(1100, abs=150), 20_000)
  assert baselines.xz_size(noise, noise[-2000:], max_window=20_000)[0] < 50


def test_the_command_evaluates_all_three_models_on_the_same_bytes(tmp_path, capsys, monkeypatch):
  rng = np.random.default_rng(0)
  words = ["the", "king", "queen", "naïve", "saw", "golden", "ball", "in", "wood"]
  data = tmp_path / "a.txt"
  data.write_text("<|endoftext|>".join(" ".join(rng.choice(words, 40)) for _ in range(40)))
  train, val = train_val_split(read_documents([data]), 3, 0.1)
  tokenizer = BytePairEncoding.characters(train)
  tokenizer.save(tmp_path)
  monkeypatch.setattr(hub, "find", lambda *_: tmp_path)
  monkeypatch.setattr(checkpoints, "load_module", lambda _: SimpleNamespace(context=16))
  monkeypatch.setattr(
    perplexity,
    "token_losses",
    lambda model, ids, stride: ((i, np.full(len(x) - 1, 2.0)) for i, x in enumerate(ids)),
  )
  monkeypatch.setattr(cli, "note", lambda _: None)
  out = tmp_path / "o.json"
  options = ["-m", str(tmp_path), "--val-seed", "3", "--val-fraction", "0.1", "-o", str(out)]
  for limit in (None, 50):
    limits = [] if limit is None else ["--max-tokens-per-document", str(limit)]
    assert baselines.main([str(data), *options, *limits]) == 0
    results = json.loads(out.read_text())
    texts = [d[:limit] for d in val]
    size = sum(len(t.encode()) for t in texts)
    num_tokens = sum(map(len, texts))
    assert results["bytes"] == size
    assert results["tokens"] == num_tokens
    assert results["documents"] == len(val)
    ngrams = baselines.KneserNey(tokenizer.encode_documents(train), len(tokenizer))
    ids = [np.array([tokenizer.end, *tokenizer.encode(t)]) for t in texts]
    ngram_bits = -sum(np.log2(ngrams(x)[1:]).sum() for x in ids)
    xz_bits = 8 * baselines.xz_size("".join(train).encode(), "".join(texts).encode())[0]
    expected = {
      "5-gram Kneser-Ney": ngram_bits / size,
      "xz": xz_bits / size,
      tmp_path.name: 2 * num_tokens / math.log(2) / size,
    }
    assert results["bits_per_byte"] == pytest.approx(expected)
    assert f"{ngram_bits / size:.4f}" in capsys.readouterr().out
