import collections
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

import evaluate
from experiments import baselines
from tinyformer import checkpoints, cli
from tinyformer.checkpoints import hub
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
from tinyformer.training.documents import train_val_split, read_documents


def chain(vocab: int, length: int, seed: int = 0) -> list[int]:
  """A text of tokens, some of which often follow each other."""
  draw = np.random.default_rng(seed)
  table, ids = draw.dirichlet(np.full(vocab, 0.3), vocab), [0]
  for _ in range(length - 1):
    ids.append(int(draw.choice(vocab, p=table[ids[-1]])))
  return ids


class Plain:
  """Kneser-Ney as its docstring has it, with dictionaries: nothing is sorted, numbered or kept."""

  def __init__(self, ids: list[int], vocab: int, order: int):
    self.vocab, self.order = vocab, order
    self.grams = [
      collections.Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
      for n in range(1, order + 1)
    ]

  def count(self, gram: tuple[int, ...]) -> int:
    if len(gram) == self.order:
      return self.grams[-1][gram]
    return len({longer[0] for longer in self.grams[len(gram)] if longer[1:] == gram})

  def discount(self, n: int, count: int) -> float:
    ns = collections.Counter(self.count(gram) for gram in self.grams[n - 1])
    found = (
      [0, *(k - (k + 1) * ns[1] / (ns[1] + 2 * ns[2]) * ns[k + 1] / ns[k] for k in (1, 2, 3))]
      if all(ns[k] for k in (1, 2, 3, 4))
      else [-1.0]
    )
    return (found if min(found) >= 0 else [0, 0.5, 1, 1.5])[min(3, count)]

  def p(self, history: tuple[int, ...], w: int) -> float:
    n = len(history) + 1
    counts = [self.count((*history, v)) for v in range(self.vocab)]
    below = self.p(history[1:], w) if history else 1 / self.vocab
    if not sum(counts):
      return below
    taken = [self.discount(n, c) for c in counts]
    return (counts[w] - taken[w] + sum(taken) * below) / sum(counts)


@pytest.mark.parametrize("vocab, length, order", [(4, 60, 2), (5, 200, 3), (6, 30, 1), (6, 300, 5)])
def test_it_gives_what_counting_by_hand_gives(vocab, length, order):
  ids = chain(vocab, length)
  grams, plain = baselines.KneserNey(np.array(ids), vocab, order), Plain(ids, vocab, order)
  assert np.array(grams.discounts) == pytest.approx(
    np.array([[plain.discount(n + 1, k) for k in range(4)] for n in range(order)])
  )
  text = ids[:6] + np.random.default_rng(1).integers(0, vocab, 10).tolist()
  want = [plain.p(tuple(text[max(0, i - order + 1) : i]), w) for i, w in enumerate(text)]
  assert grams(np.array(text)) == pytest.approx(want, rel=1e-12)


def test_what_follows_any_history_adds_up_to_one():
  ids = chain(40, 3000)
  grams, draw = baselines.KneserNey(np.array(ids), 43), np.random.default_rng(1)
  assert sum(tuple(d) != (0, 0.5, 1, 1.5) for d in grams.discounts) >= 3
  for history in (ids[100:110], ids[:2], [], draw.integers(0, 43, 9).tolist(), [*ids[50:60], 42]):
    assert sum(grams(np.array([*history, w]))[-1] for w in range(43)) == pytest.approx(1, abs=1e-12)


def test_discounts_are_those_of_the_paper():
  counts = np.repeat([1, 2, 3, 4, 9], [10, 5, 2, 1, 7])  # Y = 10 / (10 + 2 * 5) = 1/2
  assert baselines.discounts(counts) == pytest.approx(
    [0, 1 - 2 / 2 * 5 / 10, 2 - 3 / 2 * 2 / 5, 3 - 4 / 2 * 1 / 2]
  )
  for strange in (counts[counts != 3], np.repeat([1, 2, 3, 4], [1, 1, 9, 1])):
    assert baselines.discounts(strange).tolist() == [0, 0.5, 1, 1.5]


def test_five_grams_find_the_entropy_of_a_chain_of_three():
  """A source where two tokens decide the next one, which costs log2 3 bits."""
  draw = np.random.default_rng(0)
  next_ones, ids = draw.permuted(np.tile(np.arange(8), (64, 1)), axis=1)[:, :3], [0, 1]
  for _ in range(22_000):
    ids.append(int(draw.choice(next_ones[ids[-2] * 8 + ids[-1]])))
  text = np.array(ids)

  def bits(order):
    return -np.log2(baselines.KneserNey(text[:20_000], 8, order)(text[20_000:])[5:]).mean()

  assert (
    bits(5) == pytest.approx(math.log2(3), abs=0.08)
    and bits(3) == pytest.approx(math.log2(3), abs=0.02)
    and bits(2) > 2.5
  )


def test_a_text_too_short_for_its_n_grams_is_told():
  with pytest.raises(ValueError, match="a text of 4 tokens has no 5-gram"):
    baselines.KneserNey(np.arange(4), 4)


def test_xz_knows_what_its_window_holds():
  noise = (
    np.random.default_rng(0).integers(97, 113, 30_000).astype(np.uint8).tobytes()
  )  # half a byte to know in each
  assert (
    baselines.xz(noise, noise[:2000])[0] < 50
    and 950 < baselines.xz(noise, noise[:2000][::-1])[0] < 1250
  )
  assert baselines.xz(b"", noise[:2000] * 2)[0] < 1250  # what is held out serves itself
  assert (
    baselines.xz(noise, noise[:2000], most=20_000) == (pytest.approx(1100, abs=150), 20_000)
    and baselines.xz(noise, noise[-2000:], most=20_000)[0] < 50
  )


def test_the_command_compares_all_three_on_the_same_bytes(tmp_path, capsys, monkeypatch):
  draw, words = (
    np.random.default_rng(0),
    ["the", "king", "queen", "naïve", "saw", "golden", "ball", "in", "wood"],
  )
  (tmp_path / "a.txt").write_text(
    "<|endoftext|>".join(" ".join(draw.choice(words, 40)) for _ in range(40))
  )
  learn, held = train_val_split(read_documents([tmp_path / "a.txt"]), 3, 0.1)
  tokenizer = BytePairEncoding.characters(learn)
  tokenizer.save(tmp_path)
  monkeypatch.setattr(hub, "find", lambda *_: tmp_path)
  monkeypatch.setattr(checkpoints, "load_module", lambda _: SimpleNamespace(context=16))
  monkeypatch.setattr(
    evaluate,
    "nats",
    lambda model, ids, stride: ((i, np.full(len(x) - 1, 2.0)) for i, x in enumerate(ids)),
  )
  monkeypatch.setattr(cli, "note", lambda _: None)
  for most in (None, 50):
    more = [] if most is None else ["--max-tokens-per-document", str(most)]
    assert (
      baselines.main(
        [
          str(tmp_path / "a.txt"),
          "-m",
          str(tmp_path),
          "--val-seed",
          "3",
          "--val-fraction",
          "0.1",
          "-o",
          str(tmp_path / "o.json"),
          *more,
        ]
      )
      == 0
    )
    told, texts = json.loads((tmp_path / "o.json").read_text()), [d[:most] for d in held]
    size = sum(len(t.encode()) for t in texts)
    assert (
      told["bytes"] == size
      and told["tokens"] == sum(map(len, texts))
      and told["documents"] == len(held)
    )
    grams = baselines.KneserNey(tokenizer.encode_documents(learn), len(tokenizer))
    gram_bits = -sum(
      np.log2(grams(np.array([tokenizer.end, *tokenizer.encode(t)]))[1:]).sum() for t in texts
    )
    xz_bits = 8 * baselines.xz("".join(learn).encode(), "".join(texts).encode())[0]
    want = {
      "5-gram Kneser-Ney": gram_bits / size,
      "xz": xz_bits / size,
      tmp_path.name: 2 * sum(map(len, texts)) / math.log(2) / size,
    }
    assert told["bits_per_byte"] == pytest.approx(want)
    assert f"{gram_bits / size:.4f}" in capsys.readouterr().out
