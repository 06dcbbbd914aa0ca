"""What a model computed on the way, written down as it computes: parts to pass to any model, or to put in the place of those that it has."""

from collections.abc import Callable
from typing import Any, NamedTuple

from tinygrad import Tensor

from transformer import Block, attention_weights, scaled_dot_product, repeat_kv, materialize


class Recorder:
  """transformer.attention, which keeps the weights of every call, (B, H, T, S) each, and what each head gave, (B, H, T, K): of a model, layer after layer.

  An encoder-decoder's come in its own order: its encoder's layers, then of each of its decoder's the self-attention and the cross-attention.
  """

  def __init__(self):
    self.weights: list[Tensor] = []
    self.heads: list[Tensor] = []

  def __call__(
    self,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    similarity: Callable = scaled_dot_product,
  ) -> Tensor:
    """As transformer.attention."""
    self.weights.append(materialize(attention_weights(q, k, mask, similarity)))
    self.heads.append(materialize(self.weights[-1] @ repeat_kv(v, q)))
    return self.heads[-1]


class Step(NamedTuple):
  """A residual connection at work. x (B, T, D): what came in; added (B, T, D): what its sublayer gave; call: of the attention recorder, None for a feed-forward."""

  block: Block
  norm: Callable
  x: Tensor
  added: Tensor
  after: bool  # the norm is of the sum, as post_norm has it, not of what the sublayer reads
  call: int | None


class StreamRecorder:
  """A block's `residual`, whichever it is, which keeps a Step of every call: put it in a block's place of that with `of`."""

  def __init__(self, recorder: Recorder):
    self.recorder, self.steps = recorder, list[Step]()

  def of(self, block: Block) -> Callable:
    """What computes the same as the residual of this block."""
    plain = block.residual

    def residual(x: Tensor, sublayer: Callable, norm: Callable) -> Tensor:
      seen: dict[str, Any] = {}

      def added(x: Tensor) -> Tensor:
        before, seen["normed"] = len(self.recorder.weights), "norm" in seen
        seen["added"] = materialize(sublayer(x))
        seen["call"] = before if len(self.recorder.weights) > before else None
        return seen["added"]

      def normed(x: Tensor) -> Tensor:
        seen["norm"] = True
        return norm(x)

      x = materialize(x)
      y = plain(x, added, normed)
      self.steps.append(Step(block, norm, x, seen["added"], not seen["normed"], seen["call"]))
      return y

    return residual
