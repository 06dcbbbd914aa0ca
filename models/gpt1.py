"""GPT is GPT-2 with post-norm blocks, as in the 2017 paper, and no norm after the last block.

Source: Radford et al. 2018, sec. 4.1.
"""

import dataclasses
from dataclasses import dataclass

from layers.parts import PLAIN, Parts
from models import gpt2
from models.hf_config import HFConfig
from transformer import post_norm


@dataclass(frozen=True)
class GPTConfig(gpt2.GPT2Config):
  """The defaults are the sizes of the published model, with 117 million parameters."""

  vocab_size: int = 40478
  context: int = 512


class GPT(gpt2.GPT2):
  """Compute the logits of the next token for each token of a sequence.

  The methods and the initialization are those of GPT2.
  """

  residual = staticmethod(post_norm)

  def __init__(self, config: GPTConfig, parts: Parts = PLAIN):
    super().__init__(config, parts)
    # The last block already ends with a norm.
    self.norm = lambda x: x


def from_hf(hf: HFConfig) -> GPTConfig:
  """Translate a config.json.

  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  hf.only(tie_word_embeddings=True)
  # In this architecture's configs, "gelu" is the tanh approximation.
  is_tanh_gelu = hf.text("afn", "gelu") == "gelu"
  dim = hf.size("n_embd", 768)
  return GPTConfig(
    vocab_size=hf.size("vocab_size", 40478),
    context=hf.size("n_positions", 512),
    dim=dim,
    heads=hf.size("n_head", 12, divides=dim),
    num_layers=hf.size("n_layer", 12),
    activation="gelu_tanh" if is_tanh_gelu else hf.activation("afn", "gelu"),
    eps=hf.epsilon("layer_norm_epsilon", 1e-5),
  )


# GPT-2's key map (see there), except for the names of the embeddings.
EMBEDDINGS = {
  r"tokens": "transformer.tokens_embed",
  r"positions": "transformer.positions_embed",
}
KEY_MAP = dataclasses.replace(
  gpt2.KEY_MAP,
  rules=gpt2.KEY_MAP.rules | EMBEDDINGS,
  tied={"lm_head.weight": ("transformer.tokens_embed.weight",)},
)
