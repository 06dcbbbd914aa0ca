"""Bugs planted in tinyformer/checkpoints; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "exact GELU for the tanh form",
    "tinyformer/checkpoints/config.py",
    "ACTIVATIONS",
    '"gelu_new": gelu',
    '"gelu_new": functools.partial(Tensor.gelu, approximate="none")',
    "gpt2",
  ),
  Bug(
    "experts in the order of their names",
    "tinyformer/checkpoints/safetensors.py",
    "join",
    "ConcatenatedTensor([by_number[i] for i in range(len(by_number))])",
    "ConcatenatedTensor([by_number[i] for i in reversed(range(len(by_number)))])",
    "llama",
  ),
  Bug(
    "tanh GELU for the exact form",
    "tinyformer/checkpoints/config.py",
    "ACTIVATIONS",
    '"gelu": functools.partial(Tensor.gelu, approximate="none")',
    '"gelu": gelu',
    "bert",
  ),
  Bug(
    "the tanh form of GELU for the exact one",
    "tinyformer/checkpoints/config.py",
    "ACTIVATIONS",
    'functools.partial(Tensor.gelu, approximate="none")',
    "gelu",
    "vit",
  ),
  Bug(
    "a bias kept in 16 bits",
    "tinyformer/checkpoints/safetensors.py",
    "load_weights",
    ' and "bias" not in o',
    "",
    "encoder_decoders",
  ),
  Bug(
    "weights before their config.json",
    "tinyformer/checkpoints/safetensors.py",
    "write",
    '  write_text(folder / "config.json", json.dumps(config | {"dtype": dtype}, indent=2) '
    '+ "\\n")\n  write_safetensors(folder / "model.safetensors", tensors)',
    '  write_safetensors(folder / "model.safetensors", tensors)\n  write_text(folder / '
    '"config.json", json.dumps(config | {"dtype": dtype}, indent=2) + "\\n")',
    "train",
  ),
  Bug(
    "weights that come with a vocabulary",
    "tinyformer/checkpoints/hub.py",
    "download",
    "  if not weights: return\n",
    "",
    "hub",
  ),
]
