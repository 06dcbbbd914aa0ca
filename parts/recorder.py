"""What a model's attention looked at, written down as it computes: a part to pass to any model as `attend`."""
from collections.abc import Callable
from tinygrad import Tensor
from transformer import attention_weights, scaled_dot_product, shared, stored

class Recorder:
  """transformer.attention, which keeps the weights of every call, (B, H, T, S) each: of a model, layer after layer.

  An encoder-decoder's come in its own order: its encoder's layers, then of each of its decoder's the self-attention and the cross-attention.
  """
  def __init__(self): self.weights:list[Tensor] = []

  def __call__(self, q:Tensor, k:Tensor, v:Tensor, mask:Tensor|None=None, similarity:Callable=scaled_dot_product) -> Tensor:
    """As transformer.attention."""
    self.weights.append(stored(attention_weights(q, k, mask, similarity)))
    return self.weights[-1] @ shared(v, q)
