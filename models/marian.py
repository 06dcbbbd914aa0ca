"""Marian is BART with sinusoidal positions and no norm after the embeddings.

The columns of its positions are all sines followed by all cosines. Published models use SiLU.
Source: Junczys-Dowmunt et al. 2018.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

from layers.parts import Parts
from layers.positions import sinusoids_in_halves
from models import bart
from models.bart import from_hf
from models.encoder_decoder import identity

__all__ = ["KEY_MAP", "Marian", "from_hf"]


class Marian(bart.Bart):
  """Compute the logits of the next target token from a source and the target so far."""

  @staticmethod
  def positions(config: bart.BartConfig, parts: Parts) -> Callable:
    """Return sinusoidal positions: position ids (T) -> (T, D)."""
    return partial(sinusoids_in_halves, dim=config.dim)

  @staticmethod
  def embed_norm(config: bart.BartConfig, parts: Parts) -> Callable:
    """Return the identity: Marian does not normalize its embeddings."""
    return identity


# BART's key map, without a table of positions.
COMPUTED = {
  r"model\.(en|de)coder\.embed_positions\.weight": "sinusoids: layers/positions.py computes them"
}
KEY_MAP = dataclasses.replace(bart.KEY_MAP, ignored=bart.KEY_MAP.ignored | COMPUTED)
