"""GPT is GPT-2 with post-norm blocks, as in the 2017 paper, and no norm after the last block.

Source: Radford et al. 2018, sec. 4.1.
"""

import dataclasses

from models import gpt2
from tinyformer.checkpoints.config import Config, loader
from tinyformer.kernels.gelu import gelu
from transformer import post_norm

EMBEDDINGS = {
  r"tokens": "transformer.tokens_embed",
  r"positions": "transformer.positions_embed",
}
KEY_MAP = dataclasses.replace(gpt2.KEY_MAP, rules=gpt2.KEY_MAP.rules | EMBEDDINGS)


class GPT(gpt2.GPT2):
  """Compute the logits of the next token for each token of a sequence.

  The other arguments, the methods and the initialization are those of GPT2.
  """

  def __init__(self, vocab_size: int = 40478, context: int = 512, **kwargs):
    super().__init__(vocab_size, context, residual=post_norm, **kwargs)
    # The last block already ends with a norm.
    self.norm = lambda x: x


def from_config(config: Config, **parts) -> GPT:
  """Return an untrained model with the sizes of a config.json.

  parts: the arguments `linear`, `attention_fn` and `layer_norm` of GPT2.
  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  config.only(tie_word_embeddings=True)
  # In this architecture's configs, "gelu" is the tanh approximation.
  uses_tanh_gelu = config.get("afn", "gelu") == "gelu"
  return GPT(
    vocab_size=config.size("vocab_size", 40478),
    context=config.size("n_positions", 512),
    dim=config.size("n_embd", 768),
    heads=config.size("n_head", 12),
    num_layers=config.size("n_layer", 12),
    activation=gelu if uses_tanh_gelu else config.activation("afn", "gelu"),
    eps=config.get("layer_norm_epsilon", 1e-5),
    **parts,
  )


load = loader(from_config, KEY_MAP)
