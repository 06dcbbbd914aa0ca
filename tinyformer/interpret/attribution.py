"""Direct logit attribution: how much each part of a model contributes directly to a logit.

The parts are the heads, feed-forward networks, embeddings and biases. A logit is the dot product
of a direction g and the input of the head, plus a bias. With the scale of each norm fixed at its
computed value, that input is a sum over the parts. g is propagated backward from the head to the
embeddings, through each norm. The contribution of a part is its dot product with g at the point
where it is added to the residual stream. The contributions therefore add up to the logit. Effects
through the attention and feed-forward networks of later layers count as contributions of those
layers. Source: Elhage et al. 2021, "direct paths".
"""

from typing import NamedTuple

import numpy as np

from tinyformer.interpret.activations import Activations, Norm
from tinyformer.interpret.logit_lens import HEAD_BATCH_SIZE, apply_final_norm, head_logits


class Contribution(NamedTuple):
  """The contribution of one part of the model to logits, values (P, n).

  kind: tokens, positions, attn, cross, ff or biases.  layer, head: None if the part has none.
  """

  kind: str
  layer: int | None
  head: int | None
  values: np.ndarray


def logit_directions(
  model, x: np.ndarray, logit_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
  """Return g (P, n, D) and b (P, n) with logit = g . x + b, or None if the head is not linear.

  x (P, D): the input of the head.  logit_ids (P, n): ids of tokens or labels at each position.
  """
  dim = x.shape[1]
  magnitude = np.sqrt((x * x).mean())  # the head is probed with inputs of the usual magnitude
  columns, index = np.unique(logit_ids, return_inverse=True)
  index = index.reshape(logit_ids.shape)
  probes = np.concatenate([np.zeros((1, dim)), magnitude * np.eye(dim)])
  # Logits of all probes would fill much memory: the columns are selected batch by batch.
  batches = [
    head_logits(model, probes[i : i + HEAD_BATCH_SIZE])[:, columns].astype(np.float64)
    for i in range(0, len(probes), HEAD_BATCH_SIZE)
  ]
  outputs = np.concatenate(batches)
  g = (outputs[1:] - outputs[0]).T[index] / magnitude
  b = outputs[0][index]
  logits = np.take_along_axis(head_logits(model, x), logit_ids, -1)
  error = np.abs((g * x[:, None]).sum(-1) + b - logits).max()
  is_linear = error < 1e-3 * np.abs(logits).max()
  return (g, b) if is_linear else None


def contributions(
  activations: Activations, g: np.ndarray, b: np.ndarray, positions: slice = slice(None)
) -> list[Contribution]:
  """Return contributions that add up to the logits g . x + b: embeddings, then layer by layer.

  g (P, n, D), b (P, n): as logit_directions returns them.  positions: the P positions of the text.
  """
  biases = b.copy()
  found: list[Contribution] = []  # in the order of the backward pass

  def project(x: np.ndarray) -> np.ndarray:
    """Return the dot products (P, n) of x (T, D) with the current directions."""
    return (g * x[positions][:, None]).sum(-1)

  def through_norm(norm: Norm, x: np.ndarray) -> np.ndarray:
    """Return g before a norm with input x (T, D), and add the norm's bias to the biases."""
    nonlocal biases
    if norm.bias is not None:
      biases = biases + g @ norm.bias
    return norm.vjp(g, norm.scale(x[positions])[:, None])

  if activations.final_norm:
    g = through_norm(activations.final_norm, activations.sublayers[-1].stream_after)
  for s in reversed(activations.sublayers):
    if s.is_post_norm and s.norm:
      g = through_norm(s.norm, s.x + s.output)
    if s.heads is None or s.out_weight is None:
      found.append(Contribution(s.kind, s.layer, None, project(s.output)))
      continue
    if s.out_bias is not None:
      biases = biases + g @ s.out_bias
    K = s.heads.shape[-1]
    for h in reversed(range(len(s.heads))):
      output = s.heads[h] @ s.out_weight[:, h * K : (h + 1) * K].T
      found.append(Contribution(s.kind, s.layer, h, project(output)))
  if activations.embedding_norm:
    g = through_norm(activations.embedding_norm, activations.embeddings)
  position_embeddings = activations.embeddings - activations.token_embeddings
  if position_embeddings.any():
    found.append(Contribution("positions", None, None, project(position_embeddings)))
  found.append(Contribution("tokens", None, None, project(activations.token_embeddings)))
  return [*reversed(found), Contribution("biases", None, None, biases)]


def attribute(
  model, activations: Activations, logit_ids: np.ndarray, positions: slice = slice(None)
) -> list[Contribution] | str:
  """Return the contributions to the logits with these ids (P, n), or the reason for none."""
  if not activations.is_complete:
    return (
      "This model adds vectors to the residual stream that belong to no layer. "
      "Its logits are therefore not a sum of contributions."
    )
  x = apply_final_norm(activations, activations.residual_streams()[-1][positions])
  directions = logit_directions(model, x, logit_ids)
  if directions is None:
    return (
      "The head of this model is not linear in the output of the last layer. "
      "Its logits are therefore not a sum of contributions."
    )
  g, b = directions
  return contributions(activations, g, b, positions)


def total(contributions: list[Contribution]) -> np.ndarray:
  """Return the sum of contributions (P, n)."""
  return sum((c.values for c in contributions), np.zeros(1))
