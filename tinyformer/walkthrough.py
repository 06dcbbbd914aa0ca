"""Run the sections of the 2017 paper on transformer.py and check every step against oracle.py.

`python transformer.py` prints one line per section; `-v` also shows the tensors.
"""

import argparse
import importlib
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tinygrad import Context, Tensor, nn

import transformer
from layers import similarity
from layers.norms import pre_norm
from layers.positions import concatenate_positions
from tinyformer import backend, cli, oracle
from tinyformer.device import select_device

ORDER = (
  "The sections follow the paper's order, with two exceptions. 3.1 comes after 3.3, because a\n"
  "block contains attention and a feed-forward network. 3.4 comes after 3.5, because the model\n"
  "contains the positions."
)
SHADES = " ░▒▓█"
LIBRARY = "minigrad" if backend.is_minigrad() else "tinygrad"


class CheckFailed(Exception):  # noqa: N818
  """A result differs from its reference."""


class Section:
  """Shows one section of the paper if `verbose`, and checks its results."""

  def __init__(self, number: str, title: str, verbose: bool):
    self.number, self.title, self.verbose = number, title, verbose
    self.checks = 0
    self.largest_error = 0.0
    if verbose:
      heading = f"{number} {title}".strip()
      print(f"\n\033[1m{heading}\033[0m" if cli.fancy(sys.stdout) else f"\n{heading}")

  def show(self, text: str) -> None:
    """Print a text, indented, if verbose."""
    if self.verbose:
      print("  " + text.replace("\n", "\n  "))

  def check(
    self,
    name: str,
    actual,
    expected,
    tolerance: float = 1e-5,
    reference: str = "plain Python loops",
  ) -> None:
    """Compare two Tensors, arrays, nested lists or numbers. Raises CheckFailed if they differ."""
    a, b = to_array(actual), to_array(expected)
    if a.shape != b.shape:
      raise CheckFailed(f"{self.number} {self.title}: {name} has shape {a.shape}, not {b.shape}")
    differences = np.zeros(a.shape)
    np.subtract(a, b, out=differences, where=a != b)  # equal infinities have no difference
    error = float(np.abs(differences).max(initial=0))
    if not error <= tolerance:
      raise CheckFailed(
        f"{self.number} {self.title}: {name} differs from {reference} by {error:.2g}"
      )
    self.checks += 1
    if tolerance < 1e-2:  # larger tolerances are for statistics of random numbers
      self.largest_error = max(self.largest_error, error)
    self.show(f"✓ {name}: within {error:.1g} of {reference}")

  def matrix(
    self,
    name: str,
    actual: Tensor,
    expected: oracle.Matrix,
    rows: list[str] | None = None,
    columns: list[str] | None = None,
  ) -> None:
    """Show a matrix in numbers, then check it."""
    values: Any = actual.tolist()
    if columns:
      self.show(" " * 8 + "".join(f"{c:>7}" for c in columns))
    for label, row in zip(rows or [""] * len(values), values, strict=True):
      self.show(f"{label:>7} " + "".join(f"{x:7.2f}" for x in row))
    self.check(name, actual, expected)

  def shades(self, values: Any, rows: list[str]) -> None:
    """Show a matrix in five shades, from its smallest to its largest value."""
    low, high = min(map(min, values)), max(map(max, values))
    span = high - low or 1.0
    for label, row in zip(rows, values, strict=True):
      cells = (SHADES[min(4, int(5 * (x - low) / span))] for x in row)
      self.show(f"{label:>7} {''.join(cells)}")


def to_array(x) -> np.ndarray:
  """Return a Tensor, an array, nested lists or a number as a float64 array."""
  return np.asarray(x.numpy() if hasattr(x, "numpy") else x, dtype=np.float64)


def parameters(module) -> dict[str, Any]:
  """Return a module's parameters as nested lists, by name."""
  tensors = nn.state.get_state_dict(module)
  Tensor.realize(*tensors.values())  # at once: scheduling takes longer than the computation
  return {name: t.tolist() for name, t in tensors.items()}


def normal(*shape: int, seed: int) -> np.ndarray:
  """Return standard normal numbers of a shape."""
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WORDS = ["the", "cat", "sat", "on", "the", "mat"]
VECTORS = {
  "the": [0.0, 0.0, 3.0, 0.0],
  "cat": [3.0, 0.0, 0.0, 1.0],
  "sat": [0.0, 3.0, 0.0, 0.0],
  "on": [0.0, 1.0, 0.0, 3.0],
  "mat": [3.0, 0.0, 0.0, 1.0],
}


def scaled_attention(s: Section) -> None:
  x = [VECTORS[word] for word in WORDS]
  s.show(
    "Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V: each query receives a mean of the values,\n"
    "weighted by the similarity of the query and each key.\n"
    "Six words as vectors, (T, d_k) = (6, 4), are queries, keys and values:"
  )
  for word, vector in zip(WORDS, x, strict=True):
    s.show(f"{word:>7} " + "".join(f"{value:7.2f}" for value in vector))
  s.show("The scores Q K^T / sqrt(d_k), (T, S) = (6, 6):")
  scores = transformer.scaled_dot_product(Tensor(x), Tensor(x))
  expected = [[oracle.scaled_dot_product(a, b) for b in x] for a in x]
  s.matrix("scores", scores, expected, WORDS, WORDS)
  s.show(
    "For example, cat and mat: (3 * 3 + 1 * 1) / sqrt(4) = 5. The softmax of a row takes the\n"
    "exponential of each score and divides it by their sum. In the row of cat, e^5 is divided by\n"
    "2 e^5 + e^1.5 + 3 e^0. The weights, (T, S):"
  )
  weights = transformer.attention_weights(Tensor(x), Tensor(x))
  s.matrix("attention weights", weights, oracle.attention_weights(x, x), WORDS, WORDS)
  s.show(
    "The two nouns attend to each other, and so do the two articles: their vectors are similar."
  )
  s.check("sum of each row", weights.sum(-1), [1.0] * 6, reference="1")
  s.show("The output, (T, d_k) = (6, 4):")
  output = transformer.attention(Tensor(x), Tensor(x), Tensor(x))
  s.matrix("softmax(Q K^T / sqrt(d_k)) V", output, oracle.attention(x, x, x), WORDS)


def scaling(s: Section) -> None:
  q, k = np.random.default_rng(0).standard_normal((2, 60, 64)).astype(np.float32)
  s.show(
    "If the d_k entries of q and k are independent with mean 0 and variance 1, q k^T has\n"
    "variance d_k. Division by sqrt(d_k) makes the variance 1, which keeps the softmax away from\n"
    "regions where its gradient vanishes. 60 queries and 60 keys with d_k = 64:"
  )
  for name, function, variance in (
    ("Q K^T", transformer.dot_product, 64),
    ("Q K^T / sqrt(d_k)", transformer.scaled_dot_product, 1),
  ):
    products = function(Tensor(q), Tensor(k))
    scale = 1 if variance == 64 else math.sqrt(64)
    expected = [[oracle.dot(a, b) / scale for b in k.tolist()] for a in q.tolist()]
    s.show(f"{name} has variance {to_array(products).var():.2f}.")
    s.check(f"{name}, (60, 60)", products, expected)
    s.check(f"variance of {name}", to_array(products).var(), variance, variance / 16, str(variance))


def similarities(s: Section) -> None:
  words = ["the", "cat", "sat"]
  x = [[value / 2 for value in VECTORS[word]] for word in words]
  q = Tensor(x)
  s.show(
    "The similarity of a query and a key can be computed in several ways. The paper compares dot\n"
    "products with additive attention (Bahdanau et al. 2015); the general form is from Luong et\n"
    "al. 2015. The weights of the same three vectors, (T, S) = (3, 3), with each of the four:"
  )
  identity = [[float(i == j) for j in range(4)] for i in range(4)]
  general = similarity.General(4, 4)
  nouns_to_verbs = [[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], *identity[2:]]
  general.weight = Tensor(nouns_to_verbs)
  additive = similarity.Bahdanau(4, 4, 4)
  additive.q, additive.k, additive.v = Tensor(identity), Tensor(identity), Tensor([[1.0]] * 4)
  for name, function, reference, remark in (
    (
      "dot: q k^T",
      transformer.dot_product,
      oracle.dot,
      "The larger the vectors, the closer the softmax is to one-hot.",
    ),
    (
      "scaled dot: q k^T / sqrt(d_k)",
      transformer.scaled_dot_product,
      oracle.scaled_dot_product,
      "The same order, but the weights are smoother.",
    ),
    (
      "general: q W k^T, here with a W that exchanges nouns and verbs",
      general,
      oracle.general(nouns_to_verbs),
      "W is learned, so a query can attend to keys unlike itself: cat attends to sat.",
    ),
    (
      "additive: v^T tanh(W q + U k), here with W = U = I and v = 1",
      additive,
      oracle.additive(identity, identity, [1.0] * 4),
      "tanh saturates if q and k share a feature, so keys unlike the query weigh more here.",
    ),
  ):
    s.show(f"{name}:")
    weights = transformer.attention_weights(q, q, similarity=function)
    expected = oracle.attention_weights(x, x, similarity=reference)
    s.matrix(f"weights with {name.split(':')[0]}", weights, expected, words, words)
    s.show(remark)


def multi_head(s: Section) -> None:
  x, memory = normal(5, 12, seed=5), normal(7, 12, seed=7)
  s.show(
    "MultiHead(Q, K, V) = Concat(head_1, ..., head_H) W^O\n"
    "with head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V): H = 3 heads of width d_k = 4, D = 12."
  )
  mha = transformer.MultiHeadAttention(12, 3)
  p = parameters(mha)
  out = mha(Tensor(x[None]))[0]
  s.check("self-attention, (T, D) = (5, 12)", out, oracle.multi_head(p, x.tolist(), x.tolist(), 3))
  out = mha(Tensor(x[None]), Tensor(memory[None]))[0]
  expected = oracle.multi_head(p, x.tolist(), memory.tolist(), 3)
  s.check("cross-attention to 7 keys, (5, 12)", out, expected)
  s.show("A head is SingleHeadAttention with its rows of the projections. Head 2 alone:")
  head = transformer.SingleHeadAttention(12, 4)
  for name in ("q", "k", "v"):
    projection, all_heads = getattr(head, name), getattr(mha, name)
    projection.weight, projection.bias = all_heads.weight[4:8], all_heads.bias[4:8]
  output = head(Tensor(x[None]), Tensor(memory[None]))[0].numpy()
  padded = np.pad(output, ((0, 0), (4, 4))).tolist()
  values = [row if 4 <= i < 8 else [0.0] * 12 for i, row in enumerate(p["v.weight"])]
  s.check(
    "head 2, projected",
    oracle.linear(oracle.within(p, "out."), padded),
    oracle.multi_head(p | {"v.weight": values}, x.tolist(), memory.tolist(), 3),
    reference="multi-head attention with the other heads' values set to 0",
  )


def masks(s: Section) -> None:
  s.show(
    "A mask is added to the scores: 0 where attention is allowed and -inf where it is not,\n"
    "because exp(-inf) = 0. The causal mask of 4 queries and 4 keys:"
  )
  mask = transformer.causal_mask(4, 4)
  s.matrix("causal mask", mask, oracle.causal_mask(4, 4))
  s.show("With 2 earlier keys from the KV cache, the queries also see those:")
  s.matrix(
    "causal mask with 2 cached keys", transformer.causal_mask(4, 6), oracle.causal_mask(4, 6)
  )
  x = normal(4, 8, seed=1)
  s.show("The weights of four vectors with the first mask, (T, S) = (4, 4):")
  weights = transformer.attention_weights(Tensor(x), Tensor(x), mask)
  expected = oracle.attention_weights(x.tolist(), x.tolist(), oracle.causal_mask(4, 4))
  s.matrix("masked attention weights", weights, expected)
  s.show("A query whose keys are all padding receives zeros:")
  padding = transformer.padding_mask(Tensor([[False] * 4]))[0, 0]
  output = transformer.attention(Tensor(x), Tensor(x), Tensor(x), padding)
  s.check("attention with all keys masked", output, np.zeros((4, 8)), reference="0, not NaN")


def feed_forward(s: Section) -> None:
  x = [[0.5, -1.0, 2.0, 0.1], [1.0, 0.3, -0.7, 0.0], [0.5, -1.0, 2.0, 0.1]]
  ff = transformer.FeedForward(4, 16)
  s.show(
    "FFN(x) = max(0, x W1 + b1) W2 + b2, applied to each position separately:\n"
    "(T, D) = (3, 4) -> (T, F) = (3, 16) -> (3, 4). Rows 1 and 3 have equal inputs and outputs."
  )
  s.matrix("FFN(x)", ff(Tensor(x)), oracle.feed_forward(parameters(ff), x))


def residuals(s: Section) -> None:
  x = normal(5, 12, seed=3)
  s.show(
    "Each sublayer has a residual connection and a norm: LayerNorm(x + Sublayer(x)) in the paper\n"
    "(post-norm), x + Sublayer(LayerNorm(x)) in most later models (pre-norm)."
  )
  for residual in (transformer.post_norm, pre_norm):
    attn, ff = transformer.MultiHeadAttention(12, 3), transformer.FeedForward(12, 20)
    block = transformer.Block(attn, ff, lambda: nn.LayerNorm(12), residual)
    out = block(Tensor(x[None]))[0]
    is_pre_norm = residual is pre_norm
    expected = oracle.block(parameters(block), x.tolist(), 3, pre_norm=is_pre_norm)
    s.check(f"a block with {residual.__name__}, (T, D) = (5, 12)", out, expected)
    if not is_pre_norm:
      s.check("row means after post-norm", out.mean(-1), [0.0] * 5, reference="0")


def stacks(s: Section) -> None:
  x, y = normal(1, 7, 12, seed=7), normal(1, 5, 12, seed=5)
  encoder = transformer.Encoder(2, 12, 3, 20)
  decoder = transformer.Decoder(2, 12, 3, 20)
  memory = encoder(Tensor(x)).realize()
  expected = oracle.stack(parameters(encoder), 2, x[0].tolist(), 3)
  s.show(
    "The encoder reads 7 vectors. The decoder reads 5; each attends to the 7 and to the earlier\n"
    "ones of the 5. Two layers each, D = 12."
  )
  s.check("encoder output, (B, S, D) = (1, 7, 12)", memory, [expected])
  mask = oracle.causal_mask(5, 5)
  output = oracle.stack(parameters(decoder), 2, y[0].tolist(), 3, mask, expected)
  s.check("decoder output, (B, T, D) = (1, 5, 12)", decoder(Tensor(y), memory), [output])


def positions(s: Section) -> None:
  s.show(
    "PE(p, 2i) = sin(p / 10000^(2i/D)) and PE(p, 2i+1) = cos of the same angle.\n"
    "16 positions, D = 32, in shades from -1 (blank) to 1 (█):"
  )
  table = transformer.sinusoids(16, 32).contiguous()
  s.shades(table.tolist(), [f"p = {p}" for p in range(16)])
  s.check("sinusoids", table, oracle.sinusoids(16, 32))
  s.show("The dot product of two positions depends only on their distance:")
  dots = (table @ table.T).numpy()
  s.check(
    "dot products of positions 3 apart",
    [dots[p, p + 3] for p in range(13)],
    [dots[0, 3]] * 13,
    1e-4,
    "that of positions 0 and 3",
  )
  s.show("The paper adds positions to the embeddings; they can also be concatenated.")
  x = [[1.0, 2.0], [3.0, 4.0]]
  rows = oracle.sinusoids(2, 2)
  encodings = transformer.sinusoids(2, 2)
  added = Tensor([x]) + encodings
  s.check("added to x, (1, 2, 2)", added, [oracle.plus(x, rows)])
  concatenated = concatenate_positions(Tensor([x]), encodings)
  s.check("concatenated to x, (1, 2, 4)", concatenated, [[x[0] + rows[0], x[1] + rows[1]]])


def whole_model(s: Section) -> None:
  model = transformer.Transformer(11, 12, 3, 20, 1)
  source, target = [3, 1, 4, 1, 5], [9, 2, 6]
  p = parameters(model)
  s.show(
    "From 5 source ids and 3 target ids to logits, (B, T, V) = (1, 3, 11), with one layer each.\n"
    "One matrix embeds both, scaled by sqrt(D), and also computes the logits:"
  )
  logits = model(Tensor([source]), Tensor([target])).realize()
  expected = oracle.transformer(p, 1, 3, source, target)
  s.matrix("logits", logits[0], expected, columns=[str(i) for i in range(11)])
  s.show("No position sees a later token: the third token does not change the first two rows.")
  changed = model(Tensor([source]), Tensor([[9, 2, 7]]))
  s.check("first two rows again", changed[0, :2], logits[0, :2], reference="those above")
  s.show("Label smoothing of 0.1 spreads a tenth of each target over all tokens (sec. 5.4):")
  smoothed = transformer.loss(logits, Tensor([[2, 6, 0]]))
  s.check("smoothed loss", smoothed, oracle.smoothed_loss(expected, [2, 6, 0], 0.1))


def training(s: Section) -> None:
  rates = [transformer.learning_rate(step, 512, 4000) for step in range(1, 20001)]
  s.show(
    "The learning rate increases for 4,000 steps and then decreases as 1 / sqrt(step).\n"
    "Steps 1 to 20,000 in shades:"
  )
  s.show("".join(SHADES[min(4, int(5 * rates[i] / max(rates)))] for i in range(0, 20000, 313)))
  expected = [oracle.learning_rate(step, 512, 4000) for step in range(1, 20001)]
  s.check("learning rates", rates, expected, 1e-12)
  s.check("step of the largest rate", int(np.argmax(rates)) + 1, 4000, 0, "the paper's 4,000")
  s.show(
    "Dropout sets a tenth of the values to 0 and scales the rest by 1 / 0.9, in training only."
  )
  Tensor.manual_seed(1)
  x = Tensor.ones(100, 100).contiguous()
  s.check("dropout outside training", x.dropout(0.1), np.ones((100, 100)), 0, "x")
  with Context(TRAINING=1):
    dropped = x.dropout(0.1).numpy()
  s.check("fraction dropped in training", (dropped == 0).mean(), 0.1, 0.02, "0.1")
  s.check("mean of the remaining values", dropped[dropped > 0].mean(), 1 / 0.9, 1e-5, "1 / 0.9")


def backward(s: Section) -> None:
  q, k, v, do = (normal(rows, 3, seed=seed) for seed, rows in enumerate((4, 5, 5, 4)))
  s.show(
    "O = A V with A = softmax(S) and S = Q K^T / sqrt(d_k). Given dO, the chain rule yields\n"
    "  dV = A^T dO        dA = dO V^T        dS = A * (dA - rowsum(dA * A))\n"
    "  dQ = dS K / sqrt(d_k)                 dK = dS^T Q / sqrt(d_k)\n"
    f"Each is compared with finite differences and with {LIBRARY}'s gradient."
  )
  Q, K, V, dO = (Tensor(x) for x in (q, k, v, do))
  A = transformer.attention_weights(Q, K).contiguous()
  dA = dO @ V.T
  dS = (A * (dA - (dA * A).sum(-1, keepdim=True))).contiguous()
  manual = {"dQ": dS @ K / math.sqrt(3), "dK": dS.T @ Q / math.sqrt(3), "dV": A.T @ dO}
  automatic = (transformer.attention(Q, K, V) * dO).sum().gradient(Q, K, V)
  for i, (name, gradient) in enumerate(manual.items()):
    differences = finite_differences((q, k, v), do, i)
    s.show(f"{name}:")
    s.matrix(f"{name} by the formula", gradient, differences.tolist())
    s.check(f"{name} by {LIBRARY}", automatic[i], gradient, reference="the formula")


def finite_differences(inputs: tuple, do: np.ndarray, index: int, step: float = 1e-5) -> np.ndarray:
  """Return the gradient of sum(attention(q, k, v) * dO) with respect to one of q, k, v."""

  def objective(q, k, v) -> float:
    output = oracle.attention(q.tolist(), k.tolist(), v.tolist())
    return sum(oracle.dot(a, b) for a, b in zip(output, do.tolist(), strict=True))

  gradient = np.zeros_like(inputs[index], dtype=np.float64)
  for position in np.ndindex(gradient.shape):
    values = []
    for delta in (step, -step):
      shifted = [x.astype(np.float64) for x in inputs]
      shifted[index][position] += delta
      values.append(objective(*shifted))
    gradient[position] = (values[0] - values[1]) / (2 * step)
  return gradient


SECTIONS: list[tuple[str, str, Callable[[Section], None]]] = [
  ("3.2.1", "Scaled dot-product attention", scaled_attention),
  ("3.2.1", "Why the scores are scaled", scaling),
  ("3.2.1", "Four similarity functions", similarities),
  ("3.2.2", "Multi-head attention", multi_head),
  ("3.2.3", "Masks", masks),
  ("3.3", "Position-wise feed-forward networks", feed_forward),
  ("3.1", "Residual connections and norms", residuals),
  ("3.1", "Encoder and decoder stacks", stacks),
  ("3.5", "Positional encoding", positions),
  ("3.4", "The Transformer, from ids to logits", whole_model),
  ("5.3, 5.4", "Learning rate and dropout", training),
  ("", "The backward pass of attention", backward),
]


def count_checks(n: int) -> str:
  return f"{n} check" if n == 1 else f"{n} checks"


def run_sections(device: str, verbose: bool, sections=None, introduction: str = ORDER) -> int:
  """Run all sections and print a line for each, and a summary. Return the exit status.

  sections: SECTIONS if None.  introduction: printed before them if verbose.
  """
  start = time.monotonic()
  checks, largest_error = 0, 0.0
  print(f"Device: {device}", flush=True)
  if verbose:
    print(introduction)
  for number, title, section in SECTIONS if sections is None else sections:
    Tensor.manual_seed(0)
    s = Section(number, title, verbose)
    try:
      section(s)
    except CheckFailed as e:
      cli.note(f"failed: {e}")
      return 1
    checks += s.checks
    largest_error = max(largest_error, s.largest_error)
    result = f"{count_checks(s.checks)}, largest error {s.largest_error:.0e}"
    heading = title if verbose else f"{number:9}{title}"
    print(f"{'  ' if verbose else ''}ok: {heading}: {result}", flush=True)
  seconds = time.monotonic() - start
  summary = f"{count_checks(checks)} passed, largest error {largest_error:.0e}"
  print(f"{summary}, on {device}, {seconds:.0f} s")
  return 0


def main(argv: list[str] | None = None) -> int:
  """Run the walkthrough and return its exit status."""
  parser = argparse.ArgumentParser(
    prog="transformer.py",
    description="Run each section of the paper and check it against plain Python.",
  )
  parser.add_argument("-v", "--verbose", action="store_true", help="also print the tensors")
  parser.add_argument(
    "--device", help="NUMPY for minigrad, or a tinygrad device such as CPU, METAL or CUDA"
  )
  args = parser.parse_args(argv)
  return cli.run(lambda: run(args.device, args.verbose))


def run(device: str | None, verbose: bool) -> int:
  """Run all sections on a device, which may be NUMPY, and return the exit status."""
  wants_numpy = backend.is_numpy(device or os.environ.get("TINYFORMER_DEVICE"))
  if not wants_numpy or backend.is_minigrad():
    return run_sections(select_device(device), verbose)
  # This module and transformer.py, the program, have imported tinygrad. Import them again.
  backend.replace_tinygrad("tinyformer.walkthrough")
  name = select_device(device)
  return importlib.import_module("tinyformer.walkthrough").run_sections(name, verbose)
