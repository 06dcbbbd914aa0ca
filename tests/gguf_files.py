"""Write GGUF files for tests, in the layout that llama.cpp's converter gives each architecture."""

import json
import re
import struct
from pathlib import Path

import numpy as np

from tinyformer.checkpoints import safetensors

FORMATS = {bool: (7, "<?"), int: (4, "<I"), float: (6, "<f")}


def string(text: str) -> bytes:
  return struct.pack("<Q", len(text.encode())) + text.encode()


def int32(v: int) -> bytes:
  """Return the type and the bytes of a signed integer."""
  return struct.pack("<Ii", 5, v)


def value(v) -> bytes:
  """Return the type and the bytes of a value: bool, int, float, str, or a list of one of these."""
  if isinstance(v, str):
    return struct.pack("<I", 8) + string(v)
  if isinstance(v, list):
    # llama.cpp requires token types to be int32.
    items = [int32(item) if type(item) is int else value(item) for item in v]
    kind = items[0][:4] if items else struct.pack("<I", 8)
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(v)) + b"".join(i[4:] for i in items)
  kind, letter = FORMATS[type(v)]
  return struct.pack("<I", kind) + struct.pack(letter, v)


def write_gguf(path: Path, metadata: dict, tensors: dict, alignment: int = 32) -> Path:
  """Write a file of float32 arrays, or of (type, shape, data) for other types."""
  if alignment != 32:
    metadata = metadata | {"general.alignment": alignment}
  header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
  header += b"".join(string(key) + value(v) for key, v in metadata.items())
  data = b""
  for name, tensor in tensors.items():
    if isinstance(tensor, np.ndarray):
      tensor = (0, tensor.shape, np.ascontiguousarray(tensor, np.float32).tobytes())
    kind, shape, content = tensor
    header += string(name) + struct.pack("<I", len(shape))
    header += b"".join(struct.pack("<Q", n) for n in reversed(shape))
    header += struct.pack("<IQ", kind, len(data))
    data += content + bytes(-len(content) % alignment)
  path.write_bytes(header + bytes(-len(header) % alignment) + data)
  return path


def interleave_rows(x: np.ndarray, heads: int) -> np.ndarray:
  """Return q or k of a LLaMA with the two features of each pair in adjacent rows."""
  return x.reshape(heads, 2, len(x) // heads // 2, -1).swapaxes(1, 2).reshape(x.shape)


# The beginnings of Hugging Face's names -> those of llama.cpp.
DECODER_NAMES = {
  r"model\.embed_tokens": "token_embd",
  r"model\.norm": "output_norm",
  r"lm_head": "output",
  r"model\.layers\.(\d+)\.input_layernorm": r"blk.\1.attn_norm",
  r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj": r"blk.\1.attn_\2",
  r"model\.layers\.(\d+)\.self_attn\.([qk])_norm": r"blk.\1.attn_\2_norm",
  r"model\.layers\.(\d+)\.self_attn\.o_proj": r"blk.\1.attn_output",
  r"model\.layers\.(\d+)\.post_attention_layernorm": r"blk.\1.ffn_norm",
  r"model\.layers\.(\d+)\.mlp\.(\w+)_proj": r"blk.\1.ffn_\2",
  r"transformer\.wte": "token_embd",
  r"transformer\.wpe": "position_embd",
  r"transformer\.ln_f": "output_norm",
  r"transformer\.h\.(\d+)\.ln_1": r"blk.\1.attn_norm",
  r"transformer\.h\.(\d+)\.attn\.c_attn": r"blk.\1.attn_qkv",
  r"transformer\.h\.(\d+)\.attn\.c_proj": r"blk.\1.attn_output",
  r"transformer\.h\.(\d+)\.ln_2": r"blk.\1.ffn_norm",
  r"transformer\.h\.(\d+)\.mlp\.c_fc": r"blk.\1.ffn_up",
  r"transformer\.h\.(\d+)\.mlp\.c_proj": r"blk.\1.ffn_down",
  r"(?:bert\.)?embeddings\.word_embeddings": "token_embd",
  r"(?:bert\.)?embeddings\.position_embeddings": "position_embd",
  r"(?:bert\.)?embeddings\.token_type_embeddings": "token_types",
  r"(?:bert\.)?embeddings\.LayerNorm": "token_embd_norm",
  r"(?:bert\.)?encoder\.layer\.(\d+)\.attention\.self\.query": r"blk.\1.attn_q",
  r"(?:bert\.)?encoder\.layer\.(\d+)\.attention\.self\.key": r"blk.\1.attn_k",
  r"(?:bert\.)?encoder\.layer\.(\d+)\.attention\.self\.value": r"blk.\1.attn_v",
  r"(?:bert\.)?encoder\.layer\.(\d+)\.attention\.output\.dense": r"blk.\1.attn_output",
  r"(?:bert\.)?encoder\.layer\.(\d+)\.attention\.output\.LayerNorm": r"blk.\1.attn_output_norm",
  r"(?:bert\.)?encoder\.layer\.(\d+)\.intermediate\.dense": r"blk.\1.ffn_up",
  r"(?:bert\.)?encoder\.layer\.(\d+)\.output\.dense": r"blk.\1.ffn_down",
  r"(?:bert\.)?encoder\.layer\.(\d+)\.output\.LayerNorm": r"blk.\1.layer_output_norm",
}


def model_metadata(config: dict) -> dict:
  """Return the metadata of a config.json, as llama.cpp's converter writes it."""
  arch = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
  keys = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.sliding_window": ("sliding_window",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps"),
  }
  metadata = {
    f"{arch}.{key}": config[name]
    for key, names in keys.items()
    for name in names
    if config.get(name) is not None
  }
  rope = config.get("rope_parameters") or {}
  if "rope_theta" in rope:
    metadata[f"{arch}.rope.freq_base"] = float(rope["rope_theta"])
  if arch == "bert":
    metadata["bert.attention.causal"] = False
  return {"general.architecture": arch, **metadata}


def model_tensors(folder: Path, config: dict) -> dict:
  """Return the tensors of a folder in llama.cpp's layout, as float32."""
  tensors = {}
  for name, tensor in safetensors.read(folder).items():
    pattern = next((p for p in DECODER_NAMES if re.match(p, name)), None)
    if pattern is None:
      continue  # the converter leaves out BERT's pooler and its heads
    x = tensor.numpy()
    if config["model_type"] in ("llama", "mistral") and re.search(r"[qk]_proj", name):
      key = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
      x = interleave_rows(x, config[key])
    if re.search(r"c_(attn|proj|fc)\.weight", name):
      x = x.T
    tensors[re.sub(pattern, DECODER_NAMES[pattern], name)] = x
  return tensors


def folder_to_gguf(folder: Path, path: Path, **metadata) -> Path:
  """Write the model in a Hugging Face folder as a GGUF file. metadata: additional values."""
  config = json.loads((folder / "config.json").read_text())
  return write_gguf(path, model_metadata(config) | metadata, model_tensors(folder, config))


def tokenizer_metadata(kind: str, tokens: list[str], types: list[int], **values) -> dict:
  """Return the metadata of a tokenizer. values: additional ones without the common prefix."""
  metadata = {"model": kind, "tokens": tokens, "token_type": types} | values
  return {f"tokenizer.ggml.{key}": v for key, v in metadata.items()}


def bpe_metadata(folder: Path) -> dict:
  """Return the metadata of the tokenizer in a GPT-2's folder."""
  vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
  tokens = sorted(vocab, key=vocab.get)
  merges = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
  end = vocab["<|endoftext|>"]
  return tokenizer_metadata(
    "gpt2",
    tokens,
    [3 if i == end else 1 for i in range(len(tokens))],
    pre="gpt-2",
    merges=[line for line in merges if line and not line.startswith("#version")],
    bos_token_id=end,
    eos_token_id=end,
  )
