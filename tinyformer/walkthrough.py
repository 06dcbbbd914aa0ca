"""`python transformer.py -v`: a walk through the paper on transformer.py, each section shown at work and checked by oracle.py."""

import argparse
import math
import sys
import time
from typing import Any

from tinyformer import cli
from tinyformer.device import select_device


class Failed(Exception):
  """A check did not hold."""


class Section:
  """Shows what a section of the paper does, where it is asked to, and holds each number that it shows against another way to it."""

  def __init__(self, number: str, title: str, verbose: bool):
    self.number, self.title, self.verbose, self.checks, self.worst = number, title, verbose, 0, 0.0
    if verbose:
      print(f"\n\033[1m{number} {title}\033[0m" if cli.fancy(sys.stdout) else f"\n{number} {title}")

  def say(self, text: str) -> None:
    if self.verbose:
      print("  " + text.replace("\n", "\n  "))

  def check(
    self, what: str, got, want, tolerance: float = 1e-5, against: str = "plain Python loops"
  ) -> None:
    """got and want: a Tensor, an array, nested lists or a number. Raises Failed with what it was that did not hold."""
    import numpy as np

    a, b = (
      np.asarray(x.numpy() if hasattr(x, "numpy") else x, dtype=np.float64) for x in (got, want)
    )
    if a.shape != b.shape:
      raise Failed(f"{self.number} {self.title}: {what} is of shape {a.shape}, not {b.shape}")
    error = float(
      np.abs(np.subtract(a, b, out=np.zeros(a.shape), where=a != b)).max(initial=0)
    )  # equal infinities do not differ
    if not error <= tolerance:
      raise Failed(f"{self.number} {self.title}: {what} is off by {error:.2g}, against {against}")
    self.checks += 1
    if tolerance < 1e-2:
      self.worst = max(self.worst, error)  # the others are of random numbers
    self.say(f"✓ {what}: within {error:.1g} of {against}")

  def matrix(
    self,
    name: str,
    got,
    want,
    rows: list[str] | None = None,
    columns: list[str] | None = None,
    shades: bool = False,
  ) -> None:
    """Checks a matrix and shows it, in numbers or in shades from its least to its greatest."""
    self.check(name, got, want)
    if not self.verbose:
      return
    values = got.tolist()
    if columns:
      self.say(" " * 8 + "".join(f"{c:>7}" for c in columns))
    low, high = min(map(min, values)), max(map(max, values))
    for label, row in zip(rows or [""] * len(values), values):
      cells = (
        "".join(" ░▒▓█"[min(4, int(5 * (x - low) / (high - low)))] for x in row)
        if shades
        else "".join(f"{x:7.2f}" for x in row)
      )
      self.say(f"{label:>7} {cells}")


def numbers(module) -> dict[str, Any]:
  """A module's parameters as the oracle takes them."""
  from tinygrad import Tensor, nn

  parameters = nn.state.get_state_dict(module)
  Tensor.realize(
    *parameters.values()
  )  # at once: a random number costs little, its kernel's schedule much
  return {name: t.tolist() for name, t in parameters.items()}


def scaled_attention(s: Section) -> None:
  from tinygrad import Tensor

  import transformer
  from tinyformer import oracle

  words = ["the", "cat", "sat", "on", "the", "mat"]
  meaning = {
    "the": [0.0, 0, 3, 0],
    "cat": [3.0, 0, 0, 1],
    "sat": [0.0, 3, 0, 0],
    "on": [0.0, 1, 0, 3],
    "mat": [3.0, 0, 0, 1],
  }
  x = [meaning[word] for word in words]
  s.say(
    "Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V: each query takes the average of the values, weighted by how alike it and their keys are."
  )
  s.say(
    "Six words as vectors (T, d_k) = (6, 4); queries, keys and values are the words themselves. Who attends to whom, (T, S) = (6, 6):"
  )
  weights = transformer.attention_weights(Tensor(x), Tensor(x))
  s.matrix("attention weights", weights, oracle.attention_weights(x, x), words, words)
  s.say("The two nouns see each other, and so do the two articles: their vectors are alike.")
  s.check("each row's sum", weights.sum(-1), [1.0] * 6, against="1")
  s.matrix(
    "softmax(Q K^T / sqrt(d_k)) V",
    transformer.attention(Tensor(x), Tensor(x), Tensor(x)),
    oracle.attention(x, x, x),
    words,
  )


def scaling(s: Section) -> None:
  import numpy as np
  from tinygrad import Tensor

  import transformer
  from tinyformer import oracle

  q, k = np.random.default_rng(0).standard_normal((2, 60, 64)).astype(np.float32)
  s.say(
    "Q K^T of vectors with d_k independent entries of variance 1 has variance d_k. Divided by sqrt(d_k) it has variance 1, and the softmax stays soft."
  )
  for name, similarity, own, expected in (
    ("Q K^T", transformer.dot_product, oracle.dot, 64),
    ("Q K^T / sqrt(d_k)", transformer.scaled_dot_product, oracle.scaled_dot_product, 1),
  ):
    scores = similarity(Tensor(q), Tensor(k)).numpy()
    want = [own(a, b) for a in q.tolist() for b in k.tolist()]
    mean = sum(want) / len(want)
    s.check(f"{name} of 60 by 60 vectors, d_k = 64", scores.flatten(), want, 1e-4)
    s.check(
      f"its variance, {scores.var():.2f}",
      scores.var(),
      sum((x - mean) ** 2 for x in want) / len(want),
      1e-4,
    )
    s.check("its variance, about", scores.var(), expected, expected / 5, str(expected))


def masks(s: Section) -> None:
  from tinygrad import Tensor

  import transformer
  from tinyformer import oracle

  s.say(
    "A mask is added to the scores: 0 where a query may look, -inf where not, since exp(-inf) = 0. The causal mask of 4 queries and 4 keys:"
  )
  s.matrix("causal mask", transformer.causal_mask(4, 4), oracle.causal_mask(4, 4))
  s.say("With two keys more from before, kept in a cache, the same queries see those too:")
  s.matrix(
    "causal mask with 2 earlier keys", transformer.causal_mask(4, 6), oracle.causal_mask(4, 6)
  )
  x = [[0.5, -1.0, 2.0], [1.0, 0.3, -0.7], [-0.2, 0.8, 0.1], [0.9, -0.4, 0.6]]
  s.say("Attention of four vectors under the first, (T, S) = (4, 4):")
  s.matrix(
    "masked attention weights",
    transformer.attention_weights(Tensor(x), Tensor(x), transformer.causal_mask(4, 4)),
    oracle.attention_weights(x, x, oracle.causal_mask(4, 4)),
  )
  nothing = transformer.attention_weights(
    Tensor([x]), Tensor([x]), transformer.padding_mask(Tensor([[False] * 4]))[:, 0]
  )
  s.check(
    "a query all of whose keys are padding", nothing, [[[0.0] * 4] * 4], against="zeros, not NaN"
  )


def multi_head(s: Section) -> None:
  import numpy as np
  from tinygrad import Tensor

  import transformer
  from tinyformer import oracle

  x, memory = (np.random.default_rng(n).standard_normal((n, 12)).astype(np.float32) for n in (5, 7))
  s.say(
    "MultiHead(Q, K, V) = Concat(head_1 .. head_H) W^O, head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V): H = 3 heads of d_k = 4 in D = 12."
  )
  mha = transformer.MultiHeadAttention(12, 3)
  p = numbers(mha)
  out = mha(Tensor(x[None]), mask=transformer.causal_mask(5, 5))[0]
  s.check(
    "masked self-attention, (T, D) = (5, 12)",
    out,
    oracle.multi_head(p, x.tolist(), x.tolist(), 3, oracle.causal_mask(5, 5)),
  )
  out = mha(Tensor(x[None]), Tensor(memory[None]))[0]
  s.check(
    "cross-attention to 7 keys, (5, 12)", out, oracle.multi_head(p, x.tolist(), memory.tolist(), 3)
  )
  head = transformer.SingleHeadAttention(12, 4)
  for name, whole in (("q", mha.q), ("k", mha.k), ("v", mha.v)):
    part = getattr(head, name)
    part.weight, part.bias = whole.weight[4:8], whole.bias[4:8]
  alone = head(Tensor(x[None]), Tensor(memory[None]))[0].numpy()
  joined = oracle.linear(oracle.within(p, "out."), np.pad(alone, ((0, 0), (4, 4))).tolist())
  rest = p | {"v.weight": [r if 4 <= i < 8 else [0.0] * 12 for i, r in enumerate(p["v.weight"])]}
  s.check(
    "head 2 alone, joined with silent heads",
    joined,
    oracle.multi_head(rest, x.tolist(), memory.tolist(), 3),
    against="the three heads with two silenced",
  )


def feed_forward(s: Section) -> None:
  from tinygrad import Tensor

  import transformer
  from tinyformer import oracle

  x = [[0.5, -1.0, 2.0, 0.1], [1.0, 0.3, -0.7, 0.0], [0.5, -1.0, 2.0, 0.1]]
  ff = transformer.FeedForward(4, 16)
  s.say(
    "FFN(x) = max(0, x W1 + b1) W2 + b2, at each position by itself: (T, D) = (3, 4) by way of (3, F = 16)."
  )
  s.matrix("FFN(x)", ff(Tensor(x)), oracle.feed_forward(numbers(ff), x))
  s.say("Rows 1 and 3 are alike because their inputs are: no position sees another.")


def residuals(s: Section) -> None:
  import numpy as np
  from tinygrad import Tensor, nn

  import transformer
  from tinyformer import oracle

  x = np.random.default_rng(3).standard_normal((5, 12)).astype(np.float32)
  s.say(
    "Around each sublayer a residual connection and a norm: LayerNorm(x + Sublayer(x)) in the paper, x + Sublayer(LayerNorm(x)) in most since."
  )
  for residual in (transformer.post_norm, transformer.pre_norm):
    block = transformer.Block(
      transformer.MultiHeadAttention(12, 3),
      transformer.FeedForward(12, 20),
      lambda: nn.LayerNorm(12),
      residual,
    )
    out, pre = block(Tensor(x[None]))[0], residual is transformer.pre_norm
    s.check(
      f"a block with {residual.__name__}, (5, 12)",
      out,
      oracle.block(numbers(block), x.tolist(), 3, pre_norm=pre),
    )
    if not pre:
      s.check("after the post-norm: mean of each row", out.mean(-1), [0.0] * 5, against="0")


def stacks(s: Section) -> None:
  import numpy as np
  from tinygrad import Tensor

  import transformer
  from tinyformer import oracle

  x, y = (np.random.default_rng(n).standard_normal((1, n, 12)).astype(np.float32) for n in (7, 5))
  encoder, decoder = transformer.Encoder(2, 12, 3, 20), transformer.Decoder(2, 12, 3, 20)
  memory = encoder(Tensor(x)).realize()
  want = oracle.stack(numbers(encoder), 2, x[0].tolist(), 3)
  s.say(
    "The encoder reads 7 vectors; the decoder reads 5, each of which sees the 7 and those before it. Two layers each, D = 12:"
  )
  s.check("the encoder's output, (B, S, D) = (1, 7, 12)", memory, [want])
  s.check(
    "the decoder's output, (B, T, D) = (1, 5, 12)",
    decoder(Tensor(y), memory),
    [oracle.stack(numbers(decoder), 2, y[0].tolist(), 3, oracle.causal_mask(5, 5), want)],
  )


def positions(s: Section) -> None:
  from tinygrad import Tensor

  import transformer
  from tinyformer import oracle

  s.say(
    "PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i+1) = the cosine. 16 places of D = 32, sines and cosines side by side, from -1 ' ' to 1 '█':"
  )
  s.matrix(
    "sinusoids",
    transformer.sinusoids(16, 32),
    oracle.sinusoids(16, 32),
    [f"p = {p}" for p in range(16)],
    shades=True,
  )
  table = transformer.sinusoids(16, 32).contiguous()
  dots = (table @ table.T).numpy()
  s.check(
    "the dot product of places 3 apart, anywhere",
    [dots[p, p + 3] for p in range(13)],
    [dots[0, 3]] * 13,
    1e-4,
    "that of places 0 and 3",
  )
  x = Tensor([[[1.0, 2.0], [3.0, 4.0]]])
  s.check(
    "added to x (1, 2, 2)",
    transformer.add_positions(x, transformer.sinusoids(2, 2)),
    [oracle.plus([[1.0, 2.0], [3.0, 4.0]], oracle.sinusoids(2, 2))],
  )
  first, second = oracle.sinusoids(2, 2)
  s.check(
    "concatenated to x, (1, 2, 4)",
    transformer.concatenate_positions(x, transformer.sinusoids(2, 2)),
    [[[1.0, 2.0, *first], [3.0, 4.0, *second]]],
  )


def whole(s: Section) -> None:
  from tinygrad import Tensor

  import transformer
  from tinyformer import oracle

  model, source, target = transformer.Transformer(11, 12, 3, 20, 1), [3, 1, 4, 1, 5], [9, 2, 6]
  p = numbers(model)
  s.say(
    "From 5 source ids and 3 target ids to logits (B, T, V) = (1, 3, 11), by one layer each. One matrix embeds both, times sqrt(D), and gives the logits:"
  )
  logits = model(Tensor([source]), Tensor([target])).realize()
  s.matrix(
    "logits",
    logits[0],
    oracle.transformer(p, 1, 3, source, target),
    columns=[str(i) for i in range(11)],
  )
  later = model(Tensor([source]), Tensor([[9, 2, 7]]))
  s.check(
    "logits of places 1 and 2 with another third token",
    later[0, :2],
    logits[0, :2],
    against="those before",
  )
  s.check(
    "label smoothing 0.1: the loss",
    transformer.loss(logits, Tensor([[2, 6, 0]])),
    oracle.smoothed_loss(oracle.transformer(p, 1, 3, source, target), [2, 6, 0], 0.1),
  )


def training(s: Section) -> None:
  import numpy as np
  from tinygrad import Context, Tensor

  import transformer
  from tinyformer import oracle

  rates = [transformer.learning_rate(step, 512, 4000) for step in range(1, 20001)]
  s.say(
    "The learning rate rises for 4,000 steps and then falls as 1 / sqrt(step); steps 1 to 20,000 in shades:"
  )
  s.say("".join(" ░▒▓█"[min(4, int(5 * rates[i] / max(rates)))] for i in range(0, 20000, 313)))
  s.check(
    "the rates", rates, [oracle.learning_rate(step, 512, 4000) for step in range(1, 20001)], 1e-12
  )
  s.check("the step of the highest rate", int(np.argmax(rates)) + 1, 4000, 0, "the paper's 4,000")
  Tensor.manual_seed(1)
  x = Tensor.ones(100, 100).contiguous()
  s.check("dropout outside training", x.dropout(0.1), np.ones((100, 100)), 0, "x itself")
  with Context(TRAINING=1):
    dropped = x.dropout(0.1).numpy()
  s.check("the share dropped in training", (dropped == 0).mean(), 0.1, 0.02, "0.1")
  s.check("what is left, scaled up", dropped[dropped > 0].mean(), 1 / 0.9, 1e-5, "1 / 0.9")


def backward(s: Section) -> None:
  import numpy as np
  from tinygrad import Tensor

  import transformer
  from tinyformer import oracle

  q, k, v, do = (
    np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float32)
    for seed, rows in enumerate((4, 5, 5, 4))
  )
  s.say(
    "O = A V with A = softmax(S), S = Q K^T / sqrt(d_k). Given dO, by the chain rule, row by row through the softmax:"
  )
  s.say(
    "dV = A^T dO    dA = dO V^T    dS = A * (dA - sum(dA * A))    dQ = dS K / sqrt(d_k)    dK = dS^T Q / sqrt(d_k)"
  )
  Q, K, V, dO = (Tensor(x) for x in (q, k, v, do))
  A = transformer.attention_weights(Q, K).contiguous()
  dA = dO @ V.T
  dS = (A * (dA - (dA * A).sum(-1, keepdim=True))).contiguous()
  hand = {"dQ": dS @ K / math.sqrt(3), "dK": dS.T @ Q / math.sqrt(3), "dV": A.T @ dO}
  auto = dict(zip(hand, (transformer.attention(Q, K, V) * dO).sum().gradient(Q, K, V)))

  def objective(q, k, v) -> float:
    return sum(oracle.dot(a, b) for a, b in zip(oracle.attention(q, k, v), do.tolist()))

  for i, name in enumerate(hand):
    differences = np.zeros_like((q, k, v)[i])
    for place in np.ndindex(differences.shape):
      ends = []
      for step in (1e-5, -1e-5):
        inputs = [x.astype(np.float64) for x in (q, k, v)]
        inputs[i][place] += step
        ends.append(objective(*(x.tolist() for x in inputs)))
      differences[place] = (ends[0] - ends[1]) / 2e-5
    s.matrix(f"{name} by hand", hand[name], differences.tolist())
    s.check(f"{name} by tinygrad", auto[name], hand[name], against="that by hand")


SECTIONS = [
  ("3.2.1", "Scaled dot-product attention", scaled_attention),
  ("3.2.1", "Why the scores are scaled", scaling),
  ("3.2.3", "Masks", masks),
  ("3.2.2", "Multi-head attention", multi_head),
  ("3.3", "Position-wise feed-forward networks", feed_forward),
  ("3.1", "Residual connections and norms", residuals),
  ("3.1", "Encoder and decoder stacks", stacks),
  ("3.5", "Positional encoding", positions),
  ("3.4", "The Transformer, from ids to logits", whole),
  ("5", "Learning rate and dropout", training),
  ("", "Attention backwards, by hand", backward),
]


def main(argv: list[str] | None = None) -> int:
  p = argparse.ArgumentParser(
    prog="transformer.py", description="Walk through the 2017 paper and check every step."
  )
  p.add_argument("-v", "--verbose", action="store_true", help="show it happening")
  p.add_argument("--device", help="tinygrad's device, such as CPU, METAL or CUDA")
  args = p.parse_args(argv)

  def walk() -> int:
    print(f"on {select_device(args.device)}", flush=True)
    from tinygrad import Tensor

    begun = time.monotonic()
    for number, title, section in SECTIONS:
      Tensor.manual_seed(0)
      s = Section(number, title, args.verbose)
      try:
        section(s)
      except Failed as e:
        cli.note(f"failed: {e}")
        return 1
      print(
        f"{'  ' if args.verbose else ''}ok: {number:6}{title}: {s.checks} checks, none off by more than {s.worst:.0e}",
        flush=True,
      )
    cli.note(f"{time.monotonic() - begun:.0f} s")
    return 0

  return cli.run(walk)
