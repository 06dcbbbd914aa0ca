"""Marian is BART with sinusoidal positions and no norm after the embeddings.

It thus equals the 2017 Transformer, except that the columns of its positions are all sines followed
by all cosines. Source: Junczys-Dowmunt et al. 2018.
"""

import dataclasses
import functools
from collections.abc import Callable

from layers.positions import sinusoids_in_halves
from models import bart
from tinyformer.checkpoints.config import loader

COMPUTED = {
  r"model\.(en|de)coder\.embed_positions\.weight": "sinusoids: layers/positions.py computes them"
}
KEY_MAP = dataclasses.replace(bart.KEY_MAP, ignored=bart.KEY_MAP.ignored | COMPUTED)


def sinusoids(context: int, dim: int) -> Callable:
  """Return sinusoidal positions as a part of Stack: (start, T) -> (T, D)."""
  return lambda start, T: sinusoids_in_halves(T, dim, start)


from_config = functools.partial(bart.from_config, positions=sinusoids, embed_norm=False)
load = loader(from_config, KEY_MAP)
