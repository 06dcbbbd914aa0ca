"""The paper's formulas once more, in plain Python loops over lists: slow, naive, and sharing nothing with transformer.py.

lesson.py and the tests hold transformer.py against it. A matrix is a list of rows; parameters are a dict of lists by name, as in
a state dict, of which `within(p, "attn.")` gives those of one module.
"""

import math

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
  """exp(x) / sum of exp(x); zeros where every x is -inf."""
  top = max(row)
  if top == -math.inf:
    return [0.0 for _ in row]
  parts = [math.exp(x - top) for x in row]
  return [x / sum(parts) for x in parts]


def scaled_dot_product(q: Vector, k: Vector) -> float:
  return dot(q, k) / math.sqrt(len(q))


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
  """Query t stands at place S - T + t and sees the keys at places up to its own."""
  return [[0.0 if s <= S - T + t else -math.inf for s in range(S)] for t in range(T)]


def linear(p: Parameters, x: Matrix) -> Matrix:
  return [[dot(row, w) + b for w, b in zip(p["weight"], p["bias"], strict=True)] for row in x]


def layer_norm(p: Parameters, x: Matrix, eps: float = 1e-5) -> Matrix:
  out = []
  for row in x:
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    out.append(
      [
        (value - mean) / math.sqrt(variance + eps) * w + b
        for value, w, b in zip(row, p["weight"], p["bias"], strict=True)
      ]
    )
  return out


def multi_head(
  p: Parameters,
  x: Matrix,
  memory: Matrix,
  heads: int,
  mask: Matrix | None = None,
  similarity=scaled_dot_product,
) -> Matrix:
  q, k, v = (
    linear(within(p, "q."), x),
    linear(within(p, "k."), memory),
    linear(within(p, "v."), memory),
  )
  width, joined = len(q[0]) // heads, [Vector() for _ in x]
  for h in range(heads):
    a, b, c = ([row[h * width : (h + 1) * width] for row in y] for y in (q, k, v))
    for row, out in zip(joined, attention(a, b, c, mask, similarity)):
      row.extend(out)
  return linear(within(p, "out."), joined)


def relu(x: float) -> float:
  return max(0.0, x)


def gelu_tanh(x: float) -> float:
  return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def feed_forward(p: Parameters, x: Matrix, activation=relu) -> Matrix:
  return linear(
    within(p, "down."),
    [[activation(value) for value in row] for row in linear(within(p, "up."), x)],
  )


def block(
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
    return (
      plus(x, sublayer(layer_norm(norm, x))) if pre_norm else layer_norm(norm, plus(x, sublayer(x)))
    )

  x = residual(x, "attn", lambda y: multi_head(within(p, "attn."), y, y, heads, mask))
  if memory is not None:
    x = residual(
      x, "cross", lambda y: multi_head(within(p, "cross."), y, memory, heads, memory_mask)
    )
  return residual(x, "ff", lambda y: feed_forward(within(p, "ff."), y, activation))


def sinusoids(T: int, dim: int) -> Matrix:
  return [
    [(math.cos if c % 2 else math.sin)(place / 10000 ** ((c - c % 2) / dim)) for c in range(dim)]
    for place in range(T)
  ]


def stack(p: Parameters, layers: int, x: Matrix, heads: int, *args) -> Matrix:
  for i in range(layers):
    x = block(within(p, f"blocks.{i}."), x, heads, *args)
  return x


def transformer(
  p: Parameters, layers: int, heads: int, source: list[int], target: list[int]
) -> Matrix:
  """Logits for each place of the target."""
  table = p["tokens.weight"]

  def embed(ids):
    return plus(
      [[math.sqrt(len(table[0])) * value for value in table[i]] for i in ids],
      sinusoids(len(ids), len(table[0])),
    )

  memory = stack(within(p, "encoder."), layers, embed(source), heads)
  out = stack(
    within(p, "decoder."),
    layers,
    embed(target),
    heads,
    causal_mask(len(target), len(target)),
    memory,
  )
  return matmul(out, transpose(table))


def learning_rate(step: int, dim: int, warmup: int) -> float:
  """Up in a line to 1 / sqrt(dim * warmup), then down as the root of the step."""
  return (step / warmup if step < warmup else math.sqrt(warmup / step)) / math.sqrt(dim * warmup)


def smoothed_loss(logits: Matrix, target: list[int], smoothing: float) -> float:
  """Mean cross-entropy against 1 - smoothing on the target plus smoothing spread evenly over all tokens."""
  total = 0.0
  for row, t in zip(logits, target, strict=True):
    logs = [math.log(x) for x in softmax(row)]
    total -= (1 - smoothing) * logs[t] + smoothing * sum(logs) / len(logs)
  return total / len(target)
