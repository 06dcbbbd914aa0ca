"""Show how minigrad computes gradients: what `python -m minigrad` runs.

From a graph of six nodes to a GPT that learns. `-v` also shows the graphs and the numbers.
"""

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad import Tensor, nn, ops
from tinyformer import backend, cli

if TYPE_CHECKING:
  from tinyformer.walkthrough import Section

INTRODUCTION = (
  "A Tensor remembers the operation that computed it, and the operation its inputs. This graph is\n"
  "all that the backward pass needs."
)


# **************** the graph ****************


def six_nodes() -> tuple[Tensor, dict[int, str]]:
  """Return L = z^2 with z = w x + b, and the name of each node's Tensor by id."""
  w, x, b = Tensor(2.0), Tensor(3.0), Tensor(-1.0)
  p = w * x
  z = p + b
  L = z * z
  tensors = {"w": w, "x": x, "b": b, "p": p, "z": z, "L": L}
  return L, {id(t): name for name, t in tensors.items()}


def formula(t: Tensor, names: dict[int, str]) -> str:
  """Return a node as text, such as "z = Add(p, b)"."""
  if t.node is None:
    return names[id(t)]
  inputs = ", ".join(names[id(x)] for x in t.node.inputs)
  return f"{names[id(t)]} = {type(t.node).__name__}({inputs})"


def tree(t: Tensor, names: dict[int, str], indent: str = "", branch: str = "") -> list[str]:
  """Return the lines that draw a graph with values and gradients, from the result to the leaves."""
  gradient = t.grad.item() if t.grad is not None else math.nan
  text = indent + branch + formula(t, names)
  lines = [f"{text:24} value {t.item():5.1f}   gradient {gradient:5.1f}"]
  inputs = list(dict.fromkeys(t.node.inputs)) if t.node else []
  deeper = indent + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
  for i, x in enumerate(inputs):
    lines += tree(x, names, deeper, "└─ " if i == len(inputs) - 1 else "├─ ")
  return lines


def graph(s: "Section") -> None:
  L, names = six_nodes()
  L.backward()
  s.show(
    "L = z^2 with z = w x + b, for w = 2, x = 3 and b = -1. `L.backward()` computes the\n"
    "derivative of L with respect to every Tensor. By hand: dL/dz = 2z = 10, dL/db = 10,\n"
    "dL/dw = 10 x = 30, dL/dx = 10 w = 20."
  )
  s.show("\n".join(tree(L, names)))
  gradients = {names[id(t)]: t.grad.item() for t in L.graph() if t.grad is not None}
  expected = {"w": 30, "x": 20, "p": 10, "b": 10, "z": 10, "L": 1}
  for name, value in expected.items():
    s.check(f"dL/d{name}", gradients[name], value, 0, f"{value} by hand")


def order(s: "Section") -> None:
  L, names = six_nodes()
  forward = L.graph()
  s.show(
    "`graph` lists each Tensor after its inputs. The backward pass visits the list in reverse.\n"
    "When it visits a Tensor, all Tensors that were computed from it have sent their gradients.\n"
    f"Forward: {', '.join(names[id(t)] for t in forward)}"
  )
  received = {id(L): 1.0}
  for t in reversed(forward):
    sent = []
    if t.node:
      for x, dx in zip(t.node.inputs, t.node.backward(np.float32(received[id(t)])), strict=True):
        received[id(x)] = received.get(id(x), 0.0) + float(dx)
        sent.append(f"{float(dx):g} to {names[id(x)]}")
    action = "sends " + " and ".join(sent) if sent else "is a leaf"
    s.show(f"{formula(t, names):18} has received {received[id(t)]:3g}, {action}")
  s.show("z was used twice, so it has received the sum of two gradients.")
  L.backward()
  for t in forward:
    assert t.grad is not None
    s.check(f"sum that {names[id(t)]} received", received[id(t)], t.grad.item(), 0, "backward")
  position = {id(t): i for i, t in enumerate(forward)}
  edges = [(x, t) for t in forward if t.node for x in t.node.inputs]
  in_order = sum(position[id(x)] < position[id(t)] for x, t in edges)
  s.check("inputs that precede their result", in_order, len(edges), 0, "all of them")


# **************** the primitives ****************

# An example of each primitive, on float64 arrays x (2, 3) and y (2, 3).
EXAMPLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
  "Add": lambda x, y: x + y,
  "Multiply": lambda x, y: x * y,
  "Divide": lambda x, y: x / y,
  "Power": lambda x, y: x**y,
  "Exp": lambda x, y: x.exp(),
  "Log": lambda x, y: x.log(),
  "Sin": lambda x, y: x.sin(),
  "Where": lambda x, y: (x > y).where(x, y),
  "Cast": lambda x, y: x.cast("float32").cast("float64"),
  "MatMul": lambda x, y: x @ y.T,
  "Sum": lambda x, y: x.sum(0),
  "Max": lambda x, y: x.max(-1),
  "Reshape": lambda x, y: x.reshape(3, 2),
  "Permute": lambda x, y: x.permute(1, 0),
  "Expand": lambda x, y: x[:, :1].expand(2, 3),
  "Cat": lambda x, y: x.cat(y, dim=1),
  "Index": lambda x, y: x[Tensor([0, 1, 1])],
}


def differences(f: Callable[[], float], x: np.ndarray, step: float) -> np.ndarray:
  """Return the derivative of f by each element of x: (f(x + h) - f(x - h)) / 2h."""
  gradient = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    value = x[i]
    x[i] = value + step
    above = f()
    x[i] = value - step
    gradient[i] = (above - f()) / (2 * step)
    x[i] = value
  return gradient


def primitives(s: "Section") -> None:
  s.show(
    "Only the primitives have a backward pass. Each is compared with finite differences in\n"
    "float64: the sum of z * weights is computed at x + h and x - h, for each element of x."
  )
  rng = np.random.default_rng(0)
  for name, example in EXAMPLES.items():
    # float32 represents these numbers and their sums with 2^-10 exactly.
    arrays = rng.uniform(0.5, 2, (2, 2, 3)).astype(np.float32).astype(np.float64)
    step = 2**-10 if name == "Cast" else 1e-6
    x, y = (Tensor(a) for a in arrays)
    weights = rng.standard_normal(example(x, y).shape)

    def objective(x=x, y=y, example=example, weights=weights) -> Tensor:
      return (example(x, y) * Tensor(weights)).sum()

    def value(objective=objective) -> float:
      return objective().item()

    documentation = getattr(ops, name).__doc__.splitlines()[0]
    s.show(f"{name}: {documentation}")
    gradients = objective().gradient(x, y)
    for letter, t, gradient in zip("xy", (x, y), gradients, strict=True):
      expected = differences(value, t.data, step)
      if letter == "x" or expected.any():
        s.check(f"d{letter} of {name}", gradient, expected, 1e-6, "finite differences")


# **************** attention ****************


def softmax_backward(s: "Section") -> None:
  s.show(
    "The softmax is a = e / sum(e) with e = exp(s): Exp, Sum and Divide. da is given. Each e_j is\n"
    "in its own numerator and in every denominator, so Divide and Sum yield\n"
    "  de_j = (da_j - sum_i da_i a_i) / sum(e).\n"
    "Exp multiplies by e_j:\n"
    "  ds_j = a_j (da_j - sum_i da_i a_i)."
  )
  rng = np.random.default_rng(1)
  scores, da = Tensor(rng.standard_normal(5)), rng.standard_normal(5)
  e = scores.exp()
  total = e.sum()
  a = e / total
  (a * Tensor(da)).sum().backward()
  assert e.grad is not None and scores.grad is not None
  inner = (da * a.data).sum()
  s.check("de", e.grad, (da - inner) / total.data, 1e-12, "the formula")
  s.check("ds", scores.grad, a.data * (da - inner), 1e-12, "the formula")
  s.check("sum of ds", scores.grad.sum(), 0, 1e-12, "0: adding a number to all s changes nothing")


def attention_backward(s: "Section") -> None:
  import transformer

  Q: Any
  K: Any
  V: Any
  s.show(
    "transformer.py's attention, O = A V with A = softmax(S) and S = Q K^T / sqrt(d_k), for 4\n"
    "queries and 5 keys with d_k = 3. dO is given. From the result back to the inputs:\n"
    "  O = A V, a MatMul:          dV = A^T dO          dA = dO V^T\n"
    "  A = softmax(S), by row:     dS = A * (dA - rowsum(dA * A))\n"
    "  S = Q K^T / sqrt(d_k):      dQ = dS K / sqrt(d_k)    dK = dS^T Q / sqrt(d_k)"
  )
  rng = np.random.default_rng(2)
  q, k, v, do = (rng.standard_normal((rows, 3)) for rows in (4, 5, 5, 4))
  Q, K, V = (Tensor(x) for x in (q, k, v))
  A: Any = transformer.attention_weights(Q, K)
  (A @ V * Tensor(do)).sum().backward()
  a = A.data
  da = do @ v.T
  ds = a * (da - (da * a).sum(-1, keepdims=True))
  formulas: dict[str, tuple[Any, np.ndarray]] = {
    "dV": (V, a.T @ do),
    "dA": (A, da),
    "dQ": (Q, ds @ k / math.sqrt(3)),
    "dK": (K, ds.T @ q / math.sqrt(3)),
  }
  for name, (t, expected) in formulas.items():
    s.check(f"{name}, {t.shape}", t.grad, expected, 1e-12, "the formula")

  def objective() -> float:
    output: Any = transformer.attention(Q, K, V)
    return (output * Tensor(do)).sum().item()

  for name, t in {"dQ": Q, "dK": K, "dV": V}.items():
    expected = differences(objective, t.data, 1e-6)
    s.check(f"{name} by differences", t.grad, expected, 1e-7, "finite differences")


# **************** a GPT ****************

STEPS, BATCH, CONTEXT = 200, 32, 12


def digit_sequences(rng: np.random.Generator) -> np.ndarray:
  """Return (BATCH, CONTEXT + 1): each digit is the sum of the two before it, modulo 10."""
  x = rng.integers(0, 10, (BATCH, 2))
  while x.shape[1] <= CONTEXT:
    x = np.concatenate([x, (x[:, -1:] + x[:, -2:-1]) % 10], 1)
  return x.astype(np.int32)


def learn(s: "Section") -> None:
  import transformer
  from models.gpt2 import GPT2, GPT2Config

  s.show(
    f"models/gpt2.py with two layers, D = 64, learns digit sequences in which each digit is the\n"
    f"sum of the two before it, modulo 10: {STEPS} steps of AdamW on {BATCH} sequences each. The\n"
    f"loss starts near chance level, ln 10 = {math.log(10):.2f} nats."
  )
  model: Any = GPT2(GPT2Config(vocab_size=10, context=CONTEXT, dim=64, heads=4, num_layers=2))
  optimizer = nn.optim.AdamW(nn.state.get_parameters(model), lr=3e-3, weight_decay=0.01)
  rng = np.random.default_rng(0)
  losses = []
  for step in range(STEPS):
    sequences = digit_sequences(rng)
    targets = sequences[:, 1:].copy()
    targets[:, 0] = -1  # the second digit is random
    optimizer.zero_grad()
    y: Any = Tensor(targets)
    loss: Any = transformer.loss(model(Tensor(sequences[:, :-1])), y, smoothing=0)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step % 25 == 0 or step == STEPS - 1:
      s.show(f"step {step + 1:3}  loss {losses[-1]:.3f} {'█' * round(losses[-1] * 16)}")
  s.check("first loss", losses[0], math.log(10), 0.1, "chance level")
  s.check("last loss", losses[-1], 0, 0.1, "0")
  digits = [1, 1]
  while len(digits) < CONTEXT:
    digits.append(int(model(Tensor([digits])).numpy()[0, -1].argmax()))
  s.show(f"It continues 1 1 with {' '.join(map(str, digits[2:]))}.")
  expected = [1, 1]
  while len(expected) < CONTEXT:
    expected.append((expected[-1] + expected[-2]) % 10)
  s.check("continuation of 1 1", digits, expected, 0, "the Fibonacci numbers modulo 10")


SECTIONS: list[tuple[str, str, Callable[["Section"], None]]] = [
  ("1", "A graph of six nodes", graph),
  ("2", "The order of the backward pass", order),
  ("3", "The primitives", primitives),
  ("4", "The backward pass of the softmax", softmax_backward),
  ("4", "The backward pass of attention", attention_backward),
  ("5", "A GPT that learns", learn),
]


def main(argv: list[str] | None = None) -> int:
  """Run the walkthrough and return its exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m minigrad",
    description="Show and check how minigrad computes gradients.",
  )
  parser.add_argument(
    "-v", "--verbose", action="store_true", help="also print the graphs and the numbers"
  )
  args = parser.parse_args(argv)

  def run() -> int:
    backend.use_minigrad()
    from tinyformer.walkthrough import run_sections

    return run_sections("NUMPY", args.verbose, SECTIONS, INTRODUCTION)

  return cli.run(run)
