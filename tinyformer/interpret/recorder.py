"""Record activations of a running model, by replacing its attention function and residuals."""

from collections.abc import Callable
from typing import Any, NamedTuple

from tinygrad import Tensor

from layers.attention import repeat_kv
from transformer import Block, attention_weights, scaled_dot_product


class Recorder:
  """Record the calls of attention functions: weights (B, H, T, S), heads (B, H, T, K).

  weights: the attention weights.  heads: the output of each head.
  A model appends one entry per attention, layer by layer. An encoder-decoder appends the layers of
  its encoder first. Each decoder layer then appends self-attention before cross-attention.
  """

  def __init__(self):
    self.weights: list[Tensor] = []
    self.heads: list[Tensor] = []

  def wrap(self, attention_fn: Callable) -> Callable:
    """Return an attention function that returns what `attention_fn` returns, and records it.

    The weights are those of transformer.attention_weights, also if `attention_fn` is a user's own
    function and computes other ones.
    """
    # T5's attention_fn is a partial function with a similarity of its own.
    keywords = getattr(attention_fn, "keywords", {})
    default_similarity = keywords.get("similarity", scaled_dot_product)

    def recorded(
      q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *similarity: Callable
    ) -> Tensor:
      weights = attention_weights(
        q, repeat_kv(k, q), mask, similarity[0] if similarity else default_similarity
      )
      self.weights.append(weights.contiguous())
      self.heads.append(attention_fn(q, k, v, mask, *similarity).contiguous())
      return self.heads[-1]

    return recorded


class ResidualCall(NamedTuple):
  """One call of a residual connection.

  x (B, T, D): the input.  output (B, T, D): the output of the sublayer, which is added to x.
  is_post_norm: the norm applies to the sum, as in post_norm, not to the input of the sublayer.
  attention_call: the index into Recorder.weights, or None for a feed-forward network.
  """

  block: Block
  norm: Callable
  x: Tensor
  output: Tensor
  is_post_norm: bool
  attention_call: int | None


class StreamRecorder:
  """Record every call of the residual connections that `wrap` returns, in `calls`."""

  def __init__(self, recorder: Recorder):
    self.recorder = recorder
    self.calls: list[ResidualCall] = []

  def wrap(self, block: Block) -> Callable:
    """Return a function that computes this block's residual connection and records the call."""
    original = block.residual

    def residual(x: Tensor, sublayer: Callable, norm: Callable) -> Tensor:
      call: dict[str, Any] = {"norm_called": False}

      def recorded_sublayer(x: Tensor) -> Tensor:
        index = len(self.recorder.weights)
        call["norm_called_first"] = call["norm_called"]
        call["output"] = sublayer(x).contiguous()
        call["attention_call"] = index if len(self.recorder.weights) > index else None
        return call["output"]

      def recorded_norm(x: Tensor) -> Tensor:
        call["norm_called"] = True
        return norm(x)

      x = x.contiguous()
      y = original(x, recorded_sublayer, recorded_norm)
      is_post_norm = not call["norm_called_first"]
      self.calls.append(
        ResidualCall(block, norm, x, call["output"], is_post_norm, call["attention_call"])
      )
      return y

    return residual
