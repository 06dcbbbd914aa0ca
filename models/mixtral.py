"""Mixtral is Mistral with eight feed-forward networks a layer, of which a router chooses two for each token (Jiang et al. 2024, sec. 2)."""

import functools

from layers.moe import MixtureOfExperts
from models import llama
from tinyformer.checkpoints.config import Config, loader

EXPERTS = r"model.layers.\1.block_sparse_moe.experts"
KEY_MAP = llama.KEY_MAP._replace(
  rules={
    r"blocks\.(\d+)\.ff\.router": r"model.layers.\1.block_sparse_moe.gate",
    r"blocks\.(\d+)\.ff\.gate": EXPERTS + ".w1",
    r"blocks\.(\d+)\.ff\.up": EXPERTS + ".w3",
    r"blocks\.(\d+)\.ff\.down": EXPERTS + ".w2",
  }
  | llama.KEY_MAP.rules,
  stacked={r"(.*\.experts)\.(\d+)\.(w[123]\.weight)": r"\1.\3"},
)


def from_config(config: Config, **parts) -> llama.Llama:
  """An untrained model of the sizes that a config.json states. Raises ValueError for what is not built here."""
  experts, chosen = config.size("num_local_experts", 8), config.size("num_experts_per_tok", 2)
  return llama.from_config(
    config, feed_forward=functools.partial(MixtureOfExperts, experts, chosen), **parts
  )


load = loader(from_config, KEY_MAP)
