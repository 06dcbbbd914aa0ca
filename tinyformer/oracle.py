"""The paper's formulas in plain Python loops over lists, independent of transformer.py.

The walkthrough and the tests compare transformer.py with this module. A matrix is a list of rows.
Parameters are a dict of nested lists by name, as in a state dict. `within(p, "attn.")` returns
those of one module.
"""

import math
from collections.abc import Callable

Vector = list[float]
Matrix = list[list[float]]
Parameters = dict[str, list]


def within(p: Parameters, prefix: str) -> Parameters:
  return {name[len(prefix) :]: value for name, value in p.items() if name.startswith(prefix)}


def dot(a: Vector, b: Vector) -> float:
  return sum(x * y for x, y in zip(a, b, strict=True))


def transpose(a: Matrix) -> Matrix:
  return [list(column) for column in zip(*a, strict=True)]


def matmul(a: Matrix, b: Matrix) -> Matrix:
  return [[dot(row, column) for column in transpose(b)] for row in a]


def plus(a: Matrix, b: Matrix) -> Matrix:
  return [[x + y for x, y in zip(r, s, strict=True)] for r, s in zip(a, b, strict=True)]


def softmax(row: Vector) -> Vector:
  """Return exp(x) / sum(exp(x)), or zeros if every x is -inf."""
  row_max = max(row)
  if row_max == -math.inf:
    return [0.0 for _ in row]
  exponentials = [math.exp(x - row_max) for x in row]
  return [x / sum(exponentials) for x in exponentials]


def scaled_dot_product(q: Vector, k: Vector) -> float:
  return dot(q, k) / math.sqrt(len(q))


def general(w: Matrix) -> Callable[[Vector, Vector], float]:
  """Return the similarity q^T W k."""
  return lambda q, k: dot(q, [dot(row, k) for row in w])


def additive(w: Matrix, u: Matrix, v: Vector) -> Callable[[Vector, Vector], float]:
  """Return the similarity v^T tanh(W q + U k)."""

  def score(q: Vector, k: Vector) -> float:
    hidden = [math.tanh(dot(a, q) + dot(b, k)) for a, b in zip(w, u, strict=True)]
    return dot(v, hidden)

  return score


def attention_weights(
  q: Matrix, k: Matrix, mask: Matrix | None = None, similarity=scaled_dot_product
) -> Matrix:
  scores = [[similarity(query, key) for key in k] for query in q]
  return [softmax(row) for row in (plus(scores, mask) if mask else scores)]


def attention(
  q: Matrix, k: Matrix, v: Matrix, mask: Matrix | None = None, similarity=scaled_dot_product
) -> Matrix:
  return matmul(attention_weights(q, k, mask, similarity), v)


def causal_mask(T: int, S: int) -> Matrix:
  """Query t has position S - T + t and sees the keys up to that position."""
  return [[0.0 if s <= S - T + t else -math.inf for s in range(S)] for t in range(T)]


def linear(p: Parameters, x: Matrix) -> Matrix:
  return [[dot(row, w) + b for w, b in zip(p["weight"], p["bias"], strict=True)] for row in x]


def layer_norm(p: Parameters, x: Matrix, eps: float = 1e-5) -> Matrix:
  out = []
  for row in x:
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    normalized = [(value - mean) / math.sqrt(variance + eps) for value in row]
    out.append([y * w + b for y, w, b in zip(normalized, p["weight"], p["bias"], strict=True)])
  return out


def multi_head(
  p: Parameters,
  x: Matrix,
  memory: Matrix,
  heads: int,
  mask: Matrix | None = None,
  similarity=scaled_dot_product,
) -> Matrix:
  q = linear(within(p, "q."), x)
  k = linear(within(p, "k."), memory)
  v = linear(within(p, "v."), memory)
  width = len(q[0]) // heads
  concatenated: Matrix = [[] for _ in x]
  for h in range(heads):
    head_q, head_k, head_v = (
      [row[h * width : (h + 1) * width] for row in matrix] for matrix in (q, k, v)
    )
    output = attention(head_q, head_k, head_v, mask, similarity)
    for row, head_row in zip(concatenated, output, strict=True):
      row.extend(head_row)
  return linear(within(p, "out."), concatenated)


def relu(x: float) -> float:
  return max(0.0, x)


def gelu_tanh(x: float) -> float:
  return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def feed_forward(p: Parameters, x: Matrix, activation=relu) -> Matrix:
  hidden = [[activation(value) for value in row] for row in linear(within(p, "up."), x)]
  return linear(within(p, "down."), hidden)


def block(  # noqa: PLR0913
  p: Parameters,
  x: Matrix,
  heads: int,
  mask: Matrix | None = None,
  memory: Matrix | None = None,
  memory_mask: Matrix | None = None,
  pre_norm: bool = False,
  activation=relu,
) -> Matrix:
  def residual(x, name, sublayer):
    norm = within(p, name + "_norm.")
    if pre_norm:
      return plus(x, sublayer(layer_norm(norm, x)))
    return layer_norm(norm, plus(x, sublayer(x)))

  x = residual(x, "attn", lambda y: multi_head(within(p, "attn."), y, y, heads, mask))
  if memory is not None:
    cross = within(p, "cross.")
    x = residual(x, "cross", lambda y: multi_head(cross, y, memory, heads, memory_mask))
  return residual(x, "ff", lambda y: feed_forward(within(p, "ff."), y, activation))


def sinusoids(T: int, dim: int) -> Matrix:
  def value(position: int, column: int) -> float:
    angle = position / 10000 ** ((column - column % 2) / dim)
    return math.cos(angle) if column % 2 else math.sin(angle)

  return [[value(position, column) for column in range(dim)] for position in range(T)]


def stack(p: Parameters, num_layers: int, x: Matrix, heads: int, *args) -> Matrix:
  for i in range(num_layers):
    x = block(within(p, f"blocks.{i}."), x, heads, *args)
  return x


def transformer(
  p: Parameters, num_layers: int, heads: int, source: list[int], target: list[int]
) -> Matrix:
  """Return the logits (T, V) of a Transformer."""
  table = p["tokens.weight"]
  dim = len(table[0])

  def embed(ids):
    embeddings = [[math.sqrt(dim) * value for value in table[i]] for i in ids]
    return plus(embeddings, sinusoids(len(ids), dim))

  memory = stack(within(p, "encoder."), num_layers, embed(source), heads)
  mask = causal_mask(len(target), len(target))
  out = stack(within(p, "decoder."), num_layers, embed(target), heads, mask, memory)
  return matmul(out, transpose(table))


def learning_rate(step: int, dim: int, warmup: int) -> float:
  """Increase linearly to 1 / sqrt(dim * warmup), then decrease as 1 / sqrt(step)."""
  factor = step / warmup if step < warmup else math.sqrt(warmup / step)
  return factor / math.sqrt(dim * warmup)


def smoothed_loss(logits: Matrix, target: list[int], smoothing: float) -> float:
  """Return the mean cross-entropy with label smoothing, in nats."""
  total = 0.0
  for row, t in zip(logits, target, strict=True):
    log_probs = [math.log(x) for x in softmax(row)]
    total -= (1 - smoothing) * log_probs[t] + smoothing * sum(log_probs) / len(log_probs)
  return total / len(target)
