"""Bugs planted in tinyformer/checkpoints; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "gelu_new is the exact GELU",
    "models/hf_config.py",
    "ACTIVATION_NAMES",
    '"gelu_new": "gelu_tanh"',
    '"gelu_new": "gelu"',
    "gpt2",
  ),
  Bug(
    "experts are concatenated in reverse order",
    "tinyformer/checkpoints/safetensors.py",
    "join",
    "ConcatenatedTensor([by_number[i] for i in range(len(by_number))])",
    "ConcatenatedTensor([by_number[i] for i in reversed(range(len(by_number)))])",
    "llama",
  ),
  Bug(
    "gelu is the tanh form in BERT",
    "models/hf_config.py",
    "ACTIVATION_NAMES",
    '"gelu": "gelu"',
    '"gelu": "gelu_tanh"',
    "bert",
  ),
  Bug(
    "gelu is the tanh form in ViT",
    "layers/activations.py",
    "gelu",
    'approximate="none"',
    'approximate="tanh"',
    "vit",
  ),
  Bug(
    "biases are stored in 16 bits",
    "tinyformer/checkpoints/safetensors.py",
    "load_weights.new_writer",
    'if t.ndim != 2 or "bias" in target:',
    "if t.ndim != 2:",
    "encoder_decoders",
  ),
  Bug(
    "the weights are written before config.json",
    "tinyformer/checkpoints/safetensors.py",
    "write",
    '  write_text(folder / "config.json", json.dumps(config | {"dtype": dtype}, indent=2) '
    '+ "\\n")\n  # The weights come last: if they exist, everything else does.\n  '
    'write_safetensors(folder / "model.safetensors", tensors)',
    '  write_safetensors(folder / "model.safetensors", tensors)\n  write_text(folder / '
    '"config.json", json.dumps(config | {"dtype": dtype}, indent=2) + "\\n")',
    "train",
  ),
  Bug(
    "the weights are downloaded with a vocabulary",
    "tinyformer/checkpoints/hub.py",
    "download",
    "  if not weights: return\n",
    "",
    "hub",
  ),
  Bug(
    "true is a size in config.json",
    "models/hf_config.py",
    "HFConfig.integer",
    "type(value) is int",
    "isinstance(value, int)",
    "hf_config",
  ),
  Bug(
    "NaN is a number in config.json",
    "models/hf_config.py",
    "HFConfig.number",
    "minimum <= value <= maximum",
    "not (value < minimum or value > maximum)",
    "hf_config",
  ),
  Bug(
    "control characters of a checkpoint are in error messages",
    "tinyformer/files.py",
    "printable",
    "c if c.isprintable() else repr(c)[1:-1]",
    "c",
    "cli",
  ),
  Bug(
    "a JSON file may have any size",
    "tinyformer/files.py",
    "read_bytes",
    "len(data) > max_bytes",
    "False",
    "checkpoint",
  ),
]
