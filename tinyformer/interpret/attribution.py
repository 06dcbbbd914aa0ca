"""How much each part of a model adds to a prediction's logit: each head, feed-forward network, embedding and bias (Elhage et al. 2021, "direct paths").

A logit is a direction g times what the head reads, which is a sum over the residual stream's parts, but for the norms. With each norm's scale frozen at
what it was in this run they are linear; g is carried back through them from the end to the beginning, and each part is multiplied by it where it joins.
So the parts add up to the logit. What a part changes in later layers' attention and networks is not its own but theirs.
"""

from typing import NamedTuple

import numpy as np

from tinyformer.interpret.activations import Record
from tinyformer.interpret.logit_lens import ROWS, normed, read


class Part(NamedTuple):
  """kind: tokens, positions, attn, cross, ff or biases; layer and head where it has them.  adds (P, n): to each place's chosen logits."""

  kind: str
  layer: int | None
  head: int | None
  adds: np.ndarray


def directions(model, x: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
  """Of x (P, D), what the head reads, and the chosen of its logits (P, n): g (P, n, D) and b (P, n) with logit = g . x + b. None: the head is not linear."""
  D, unit = x.shape[1], np.sqrt((x * x).mean())  # unit: as large as what the head is used to
  columns, at = np.unique(chosen, return_inverse=True)
  at = at.reshape(chosen.shape)
  rows = np.concatenate([np.zeros((1, D)), unit * np.eye(D)])
  said = np.concatenate(
    [
      read(model, rows[i : i + ROWS])[:, columns].astype(np.float64)
      for i in range(0, len(rows), ROWS)
    ]
  )  # a piece at a time: a vocabulary is large
  g, b = (said[1:] - said[0]).T[at] / unit, said[0][at]
  logits = np.take_along_axis(read(model, x), chosen, -1)
  return (
    (g, b)
    if np.abs((g * x[:, None]).sum(-1) + b - logits).max() < 1e-3 * np.abs(logits).max()
    else None
  )


def parts(record: Record, g: np.ndarray, b: np.ndarray, places: slice = slice(None)) -> list[Part]:
  """What adds up to the logits g . x + b, g (P, n, D): the embeddings first, then layer by layer."""
  P, n, _ = g.shape

  def adds(x: np.ndarray) -> np.ndarray:
    return (g * x[places][:, None]).sum(-1)

  biases, found = b.copy(), list[Part]()

  def through(norm, x: np.ndarray) -> np.ndarray:
    """g before a norm that read x; what the norm's bias adds is noted."""
    nonlocal biases
    if norm.bias is not None:
      biases = biases + g @ norm.bias
    return norm.back(g, norm.scale(x[places])[:, None])

  if record.last:
    g = through(record.last, record.sublayers[-1].result)
  for s in reversed(record.sublayers):
    if s.after and s.norm:
      g = through(s.norm, s.x + s.added)
    if s.heads is None or s.out is None:
      found.append(Part(s.kind, s.layer, None, adds(s.added)))
    else:
      if s.bias is not None:
        biases = biases + g @ s.bias
      K = s.heads.shape[-1]
      for h in reversed(range(len(s.heads))):
        found.append(Part(s.kind, s.layer, h, adds(s.heads[h] @ s.out[:, h * K : (h + 1) * K].T)))
  if record.first:
    g = through(record.first, record.embedded)
  if (rest := record.embedded - record.tokens).any():
    found.append(Part("positions", None, None, adds(rest)))
  return [
    Part("tokens", None, None, adds(record.tokens)),
    *reversed(found),
    Part("biases", None, None, biases),
  ]


def attribute(
  model, record: Record, chosen: np.ndarray, places: slice = slice(None)
) -> list[Part] | str:
  """The parts of the chosen logits (P, n) at the places; or, in words, why there are none."""
  if not record.whole:
    return "Between its layers this model adds something that is no layer's: its logits have no such parts."
  found = directions(model, normed(record, record.streams()[-1][places]), chosen)
  if found is None:
    return "This model's head is not linear in what the last layer gives: its logits are no sum of what the parts add."
  return parts(record, *found, places)


def total(parts: list[Part]) -> np.ndarray:
  return sum((p.adds for p in parts), np.zeros(1))
