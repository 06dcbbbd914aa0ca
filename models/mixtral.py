"""Mixtral is Mistral with a mixture of eight experts per block, two of which process each token.

Source: Jiang et al. 2024, sec. 2.
"""

import dataclasses
import functools

from layers.moe import MixtureOfExperts
from models import llama
from tinyformer.checkpoints.config import Config, loader

MOE = r"model.layers.\1.block_sparse_moe"

# The checkpoint has one tensor per expert and matrix; ours are the concatenation over all experts.
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


def from_config(config: Config, **parts) -> llama.Llama:
  """Return an untrained model with the sizes of a config.json.

  parts: the arguments `linear` and `attention_fn` of Llama.
  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  num_experts = config.size("num_local_experts", 8)
  experts_per_token = config.size("num_experts_per_tok", 2)
  feed_forward = functools.partial(MixtureOfExperts, num_experts, experts_per_token)
  return llama.from_config(config, feed_forward=feed_forward, **parts)


load = loader(from_config, KEY_MAP)
