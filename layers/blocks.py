"""Blocks whose sublayers do not follow one another."""

from tinygrad import Tensor

from transformer import Block


class ParallelBlock(Block):
  """A block whose attention and feed-forward network read the same x: x + attn(x) + ff(x).

  Each has its own norm. The arguments are those of Block, without cross-attention; residual must be
  pre_norm or compatible. Source: Wang & Komatsuzaki 2021 (GPT-J); Black et al. 2022, sec. 2.1.
  """

  def __call__(self, x: Tensor, memory=None, memory_mask=None, **inputs) -> Tensor:
    """x (B, T, D) -> (B, T, D). inputs: keyword arguments of attn, such as its mask."""
    y = self.residual(x, lambda x: self.attn(x, **inputs), self.attn_norm)
    # The network's output is added to y, but its input is x.
    return self.residual(y, lambda _: self.ff(self.ff_norm(x)), self.ff_norm)
