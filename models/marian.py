"""Marian is BART with computed positions and no norm of the embeddings: the 2017 Transformer, its sines before its cosines (Junczys-Dowmunt et al. 2018)."""

import functools

from layers.positions import sinusoids_in_halves
from models import bart
from tinyformer.checkpoints.config import loader

KEY_MAP = bart.KEY_MAP._replace(
  ignored=bart.KEY_MAP.ignored
  | {
    r"model\.(en|de)coder\.embed_positions\.weight": "sinusoids: layers/positions.py computes them"
  }
)


def sinusoids(context: int, dim: int):
  """What models.encoder_decoder.Stack takes as positions."""
  return lambda start, T: sinusoids_in_halves(T, dim, start)


from_config = functools.partial(bart.from_config, positions=sinusoids, embed_norm=False)
load = loader(from_config, KEY_MAP)
