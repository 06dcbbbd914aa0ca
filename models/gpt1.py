"""The first GPT: GPT-2 with its norms after the sublayers, as in the 2017 paper, and so with none at the end (Radford et al. 2018, sec. 4.1)."""

from models import gpt2
from tinyformer.checkpoints.config import Config, loader
from tinyformer.kernels.gelu import gelu
from transformer import post_norm

KEY_MAP = gpt2.KEY_MAP._replace(
  rules=gpt2.KEY_MAP.rules
  | {r"tokens": "transformer.tokens_embed", r"positions": "transformer.positions_embed"}
)


class GPT(gpt2.GPT2):
  """Token ids to logits for the token that follows each of them. Arguments, methods and how weights start are GPT2's."""

  def __init__(self, vocab_size: int = 40478, context: int = 512, **more):
    super().__init__(vocab_size, context, residual=post_norm, **more)
    self.norm = lambda x: x  # the last block has ended with one


def from_config(config: Config, **parts) -> GPT:
  """An untrained model of the sizes that a config.json states. parts: linear, attend and layer_norm. Raises ValueError for what is not built here."""
  config.only(tie_word_embeddings=True)
  activation = (
    gelu if config.get("afn", "gelu") == "gelu" else config.activation("afn", "gelu")
  )  # what this family calls "gelu" is the tanh form
  return GPT(
    config.size("vocab_size", 40478),
    config.size("n_positions", 512),
    dim=config.size("n_embd", 768),
    heads=config.size("n_head", 12),
    num_layers=config.size("n_layer", 12),
    activation=activation,
    eps=config.get("layer_norm_epsilon", 1e-5),
    **parts,
  )


load = loader(from_config, KEY_MAP)
