"""One run of a model, written down as arrays: who attends to whom, what each head and sublayer gave, and the residual stream between them.

Sublayers: an attention or a feed-forward, with the residual connection and the norm around it. A stack: an encoder or a decoder, or a model that is one.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tinygrad import Tensor, nn

from tinyformer.interpret.recorder import Recorder, StreamRecorder
from tinyformer.kernels.linear import embed, to_float32
from transformer import materialize


class Norm(NamedTuple):
  """A LayerNorm (centred) or an RMSNorm (no bias). With its scale (T, 1) frozen at what it was, all but the bias is linear."""

  weight: np.ndarray
  bias: np.ndarray | None
  eps: float
  centred: bool

  @classmethod
  def of(cls, norm: Callable) -> "Norm|None":
    """None for a function that leaves vectors as they are. Raises ValueError for a norm that is neither of the two."""
    if isinstance(norm, nn.RMSNorm):
      return cls(array(norm.weight), None, norm.eps, False)
    if isinstance(norm, nn.LayerNorm):
      return cls(array(norm.weight), array(norm.bias), norm.eps, True)
    if norm(probe := object()) is probe:
      return None
    raise ValueError(f"{type(norm).__name__} is no norm that is known here")

  def scale(self, x: np.ndarray) -> np.ndarray:
    """What each row of x (T, D) is multiplied by, (T, 1)."""
    x = x - x.mean(-1, keepdims=True) if self.centred else x
    return 1 / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps)

  def __call__(self, x: np.ndarray) -> np.ndarray:
    """The norm of x (T, D)."""
    y = self.scale(x) * (x - x.mean(-1, keepdims=True) if self.centred else x) * self.weight
    return y if self.bias is None else y + self.bias

  def back(self, g: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Directions g (T, D) of what comes out as directions of what goes in: g . (y - bias) = back(g) . x, at this scale."""
    g = g * self.weight * scale
    return g - g.mean(-1, keepdims=True) if self.centred else g


def array(t: Tensor | None) -> np.ndarray:
  assert t is not None
  return t.float().numpy().astype(np.float64)


class Sublayer(NamedTuple):
  """kind: attn, cross or ff.  x (T, D): what came in; added (T, D): what it gave.  after: its norm is of their sum, not of what it reads.

  Of an attention: weights (H, T, S), heads (H, T, K), out (D, H K) that joins them, and its bias.
  """

  kind: str
  layer: int
  x: np.ndarray
  added: np.ndarray
  norm: Norm | None
  after: bool
  weights: np.ndarray | None = None
  heads: np.ndarray | None = None
  out: np.ndarray | None = None
  bias: np.ndarray | None = None

  @property
  def result(self) -> np.ndarray:
    """(T, D): the stream behind it."""
    y = self.x + self.added
    return self.norm(y) if self.after and self.norm else y


class Record(NamedTuple):
  """A stack's run. tokens (T, D): the embeddings of the tokens, or patches, alone; embedded (T, D): with positions and what else is added to them.

  first: the norm of that, last: of what the last block gives; None where there is none.
  """

  tokens: np.ndarray
  embedded: np.ndarray
  first: Norm | None
  sublayers: list[Sublayer]
  last: Norm | None

  def maps(self, kind: str = "attn") -> np.ndarray:
    """(layers, H, T, S): what each token, a row, attends to, a column."""
    return np.stack([s.weights for s in self.sublayers if s.kind == kind and s.weights is not None])

  def streams(self) -> list[np.ndarray]:
    """(T, D) each: the residual stream before each layer, and behind the last."""
    return [s.x for s in self.sublayers if s.kind == "attn"] + [self.sublayers[-1].result]

  @property
  def whole(self) -> bool:
    """Whether each sublayer reads what the one before it left, and nothing else is added between."""
    return all(
      np.allclose(a.result, b.x, atol=1e-3) for a, b in zip(self.sublayers, self.sublayers[1:])
    )


class Watch:
  """Stands in the places of a stack's residual connections and norms while it runs."""

  def __init__(self, stack, recorder: Recorder):
    self.stack, self.recorder, self.stream, self.norms = (
      stack,
      recorder,
      StreamRecorder(recorder),
      list[tuple[int, Callable, Tensor]](),
    )

  @contextlib.contextmanager
  def on(self) -> Iterator[None]:
    blocks, plain = self.stack.blocks, [block.residual for block in self.stack.blocks]
    norms = {
      name: norm
      for name in ("norm", "embed_norm")
      if callable(norm := getattr(self.stack, name, None))
    }
    try:
      for block in blocks:
        block.residual = self.stream.of(block)
      for name, norm in norms.items():
        setattr(self.stack, name, self.noted(norm))
      yield
    finally:
      for block, residual in zip(blocks, plain):
        block.residual = residual
      for name, norm in norms.items():
        setattr(self.stack, name, norm)

  def noted(self, norm: Callable) -> Callable:
    def note(x: Tensor) -> Tensor:
      self.norms.append((len(self.stream.steps), norm, x := materialize(x)))
      return norm(x)

    return note

  @property
  def tensors(self) -> list[Tensor]:
    return [t for s in self.stream.steps for t in (s.x, s.added)] + [x for _, _, x in self.norms]

  def record(self, tokens: Callable[[np.ndarray], np.ndarray]) -> Record:
    """tokens: what is embedded (T, D) -> the part of the tokens."""
    steps = self.stream.steps
    before, behind = (
      next(((norm, x) for n, norm, x in self.norms if n == at), None) for at in (0, len(steps))
    )
    embedded = array((before[1] if before else steps[0].x)[0])
    return Record(
      tokens(embedded),
      embedded,
      Norm.of(before[0]) if before else None,
      [self.sublayer(s) for s in steps],
      Norm.of(behind[0]) if behind else None,
    )

  def sublayer(self, step) -> Sublayer:
    block, norm = step.block, Norm.of(step.norm)
    kind = next(
      kind for kind in ("attn", "cross", "ff") if getattr(block, f"{kind}_norm") is step.norm
    )
    layer, x, added = (
      next(i for i, b in enumerate(self.stack.blocks) if b is block),
      array(step.x[0]),
      array(step.added[0]),
    )
    if step.call is None:
      return Sublayer(kind, layer, x, added, norm, step.after)
    out = getattr(block, kind).out
    return Sublayer(
      kind,
      layer,
      x,
      added,
      norm,
      step.after,
      array(self.recorder.weights[step.call][0]),
      array(self.recorder.heads[step.call][0]),
      array(to_float32(out.weight)),
      None if out.bias is None else array(out.bias),
    )


def run(model, recorder: Recorder, *given: Sequence[int] | np.ndarray) -> dict[str, Record]:
  """Runs a model on a text's ids; an encoder-decoder on a source's and a target's; one for pictures on pixels (1, C, height, width). A Record of each stack.

  attend: what the model was given as such.
  """
  recorder.weights.clear()
  recorder.heads.clear()
  stacks: dict[str, Any] = (
    {"encoder": model.encoder, "decoder": model.decoder}
    if model.task == "text2text-generation"
    else {"": model}
  )
  watches = {name: Watch(stack, recorder) for name, stack in stacks.items()}
  inputs = [Tensor(g) if isinstance(g, np.ndarray) else Tensor([list(g)]) for g in given]
  with contextlib.ExitStack() as on:
    for watch in watches.values():
      on.enter_context(watch.on())
    if model.task == "text2text-generation":
      y = model.decode(inputs[1], [model.encode(inputs[0])] * len(model.decoder.blocks))
    else:
      y = model.last_hidden_state(inputs[0])
    Tensor.realize(
      y,
      *recorder.weights,
      *recorder.heads,
      *(t for watch in watches.values() for t in watch.tensors),
    )

  def part(x: Tensor) -> Callable[[np.ndarray], np.ndarray]:
    if model.task == "image-classification":
      places = array(
        model.interpolated_positions(*(int(n) // p for n, p in zip(x.shape[2:], model.patch)))[0]
      )
      return lambda embedded: embedded - places
    return lambda embedded: array(embed(model.tokens, x)[0]) * getattr(model, "scale", 1.0)

  return {name: watch.record(part(x)) for (name, watch), x in zip(watches.items(), inputs)}
