"""Keys and values kept between calls, so that generating a token costs one new row of queries and not the whole text again."""
from collections.abc import Callable
from tinygrad import Tensor, UOp

class Cache:
  """Room for the keys and values of `context` places in each layer, (B, H, context, K). What has not been written is never read.

  Made by the caller, passed to a model with the number of places that are already in it; the model writes the new ones behind them.
  """
  def __init__(self, layers:int, batch:int, heads:int, context:int, head_dim:int):
    self.context = context
    self.k, self.v = ([Tensor.empty(batch, heads, context, head_dim).realize() for _ in range(layers)] for _ in "kv")

  def layer(self, i:int, start:int|UOp) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What MultiHeadAttention takes as `cache`: writes k and v (B, H, T, K) at `start` and gives back all `start + T` places."""
    def extend(k:Tensor, v:Tensor) -> tuple[Tensor, Tensor]:
      end = start + k.shape[2]
      for kept, new in ((self.k[i], k), (self.v[i], v)): kept[:, :, start:end].assign(new)
      return self.k[i][:, :, :end], self.v[i][:, :, :end]
    return extend

  def reorder(self, rows:list[int]) -> None:
    """Row b of the batch becomes what row rows[b] was: beam search keeps some of its candidates twice and others not at all."""
    for kept in self.k + self.v: kept.assign(kept[Tensor(rows, device=kept.device)].contiguous()).realize()
