"""Compare decoding with a mixture of experts to a dense model that reads as many weights per token.

Both have random weights. The feed-forward networks of the dense model are as wide as the selected
experts together.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
  sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.weights import LLAMA_1B, llama_shapes, write_safetensors
from tinyformer import cli

DTYPES = ("float32", "bfloat16", "int8", "int4")
STEPS = 70
UNCOUNTED = 8
# Mixtral 8x7B has four times the width and six times the layers.
MIXTRAL: dict[str, Any] = LLAMA_1B | {
  "model_type": "mixtral",
  "architectures": ["MixtralForCausalLM"],
  "vocab_size": 32_000,
  "max_position_embeddings": 512,
  "hidden_size": 1024,
  "intermediate_size": 3584,
  "num_hidden_layers": 5,
  "num_attention_heads": 16,
  "num_key_value_heads": 4,
  "rope_theta": 1e6,
  "rope_scaling": None,
  "tie_word_embeddings": False,
  "num_local_experts": 8,
  "num_experts_per_tok": 2,
}
DENSE = MIXTRAL | {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "intermediate_size": MIXTRAL["intermediate_size"] * MIXTRAL["num_experts_per_tok"],
}


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
  """Return the shape of each tensor of a Llama or a Mixtral, by Hugging Face's names."""
  dense = llama_shapes(config) | {"lm_head.weight": (config["vocab_size"], config["hidden_size"])}
  if config["model_type"] == "llama":
    return dense
  dim, ff_dim = config["hidden_size"], config["intermediate_size"]
  tensors = {name: shape for name, shape in dense.items() if ".mlp." not in name}
  for layer in range(config["num_hidden_layers"]):
    prefix = f"model.layers.{layer}.block_sparse_moe"
    tensors[f"{prefix}.gate.weight"] = (config["num_local_experts"], dim)
    for expert in range(config["num_local_experts"]):
      for name, shape in {"w1": (ff_dim, dim), "w2": (dim, ff_dim), "w3": (ff_dim, dim)}.items():
        tensors[f"{prefix}.experts.{expert}.{name}.weight"] = shape
  return tensors


def make_model(folder: Path, config: dict) -> None:
  """Save a model with random weights in bfloat16."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  write_safetensors(folder / "model.safetensors", shapes(config), "BF16", rng)
  (folder / "config.json").write_text(json.dumps(config))


def decode(folder: Path, dtype: str) -> float:
  """Return the median of the milliseconds of decoding steps."""
  from tinyformer import checkpoints
  from tinyformer.generation.engine import Engine

  engine = Engine(checkpoints.load_module(folder, dtype), top_k=1)
  ids = np.random.default_rng(1).integers(0, 1000, STEPS)
  times = []
  for token in ids:
    start = time.perf_counter()
    engine(np.array([[token]]))
    times.append((time.perf_counter() - start) * 1000)
  return statistics.median(times[UNCOUNTED:])


def main(argv: list[str] | None = None) -> int:
  description = (__doc__ or "").split("\n")[0]
  p = argparse.ArgumentParser(prog="experts.py", description=description)
  p.add_argument("--folder", type=Path, help="folder for the weights (default: a temporary one)")
  p.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
  args = p.parse_args(argv)
  from tinyformer.device import select_device

  select_device()
  with tempfile.TemporaryDirectory() as temporary:
    folder = args.folder or Path(temporary)
    models = {"mixtral": MIXTRAL, "llama": DENSE}
    for name, config in models.items():
      if not (folder / name / "config.json").exists():
        make_model(folder / name, config)
    print("| step, ms | mixture of experts | dense | ratio |\n| --- | ---: | ---: | ---: |")
    for dtype in args.dtypes:
      mixture, dense = (decode(folder / name, dtype) for name in models)
      print(f"| {dtype} | {mixture:.1f} | {dense:.1f} | {dense / mixture:.2f} |", flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(cli.run(main))
