"""Mixtral is Mistral with a mixture of eight experts per block, two of which process each token.

Source: Jiang et al. 2024, sec. 2.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from models import llama
from models.hf_config import HFConfig


@dataclass(frozen=True)
class MixtralConfig(llama.LlamaConfig):
  """The sizes and settings of a Mixtral. ff_dim is the feed-forward width of one expert."""

  experts: int = 8
  experts_per_token: int = 2


class Mixtral(llama.Llama):
  """Compute the logits of the next token for each token of a sequence."""

  config: MixtralConfig

  def feed_forward(self, linear: Callable) -> Callable:
    """Return the mixture of experts of a block."""
    c = self.config
    silu = self.parts.activations["silu"]
    return self.parts.moe(c.experts, c.experts_per_token, c.dim, c.ff_dim, silu, linear)


# The values of keys that a config.json may lack, where they differ from LLaMA's.
DEFAULTS = {
  "max_position_embeddings": 131072,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-5,
  "rope_theta": 1e6,
}


def from_hf(hf: HFConfig) -> MixtralConfig:
  """Translate a config.json.

  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  hf = HFConfig(DEFAULTS | hf.values, hf.source)
  return MixtralConfig(
    **vars(llama.from_hf(hf)),
    experts=hf.size("num_local_experts", 8),
    experts_per_token=hf.size("num_experts_per_tok", 2),
  )


# The checkpoint has one tensor per expert and matrix; ours are the concatenation over all experts.
MOE = r"model.layers.\1.block_sparse_moe"
KEY_MAP = dataclasses.replace(
  llama.KEY_MAP,
  rules={
    r"blocks\.(\d+)\.ff\.router": MOE + ".gate",
    r"blocks\.(\d+)\.ff\.gate": MOE + ".experts.w1",
    r"blocks\.(\d+)\.ff\.up": MOE + ".experts.w3",
    r"blocks\.(\d+)\.ff\.down": MOE + ".experts.w2",
  }
  | llama.KEY_MAP.rules,
  stacked={r"(.*\.experts)\.(\d+)\.(w[123]\.weight)": r"\1.\3"},
)
