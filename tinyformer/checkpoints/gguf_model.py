"""Translate a GGUF file to Hugging Face's terms: config.json and the names of the tensors."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from layers.positions import rope_inv_freq
from models.hf_config import HFConfig
from models.llama import MAX_THETA
from tinyformer.checkpoints.gguf import GGUF
from tinyformer.checkpoints.safetensors import StoredTensor

# The settings of LLaMA 3.1's RoPE scaling. A file contains only the factors that result from them.
LLAMA3_SCALING = {
  "rope_type": "llama3",
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}
ROPE_FACTORS = "rope_freqs.weight"
# The values of pooling_type: none, mean, CLS and last.
POOLINGS = {0: "mean", 1: "mean", 2: "cls", 3: "lasttoken"}


class InterleavedRows(NamedTuple):
  """The rows of q or k of a LLaMA, in Hugging Face's order.

  RoPE rotates pairs of features. In Hugging Face's order, the features i and i + K/2 of a head are
  a pair. llama.cpp stores the two in adjacent rows.
  """

  tensor: Any  # a stored tensor with llama.cpp's order
  head_dim: int

  @property
  def shape(self) -> tuple[int, ...]:
    return self.tensor.shape

  def numpy(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """Return the values, or rows `first` to `last`; see GGUFTensor.numpy."""
    last = self.shape[0] if last is None else last
    first_row, end_row = self.rows_of_heads(first, last)
    rows = self.order(self.tensor.numpy(first_row, end_row))
    return rows[first - first_row : last - first_row]

  def int4(self, first: int, last: int) -> np.ndarray | None:
    """Return rows as quantize_int4 would, or None; see GGUFTensor.int4."""
    first_row, end_row = self.rows_of_heads(first, last)
    blocks = self.tensor.int4(first_row, end_row)
    return None if blocks is None else self.order(blocks)[first - first_row : last - first_row]

  def rows_of_heads(self, first: int, last: int) -> tuple[int, int]:
    """Return the first and last row of the heads that contain rows `first` to `last`."""
    K = self.head_dim
    return first // K * K, -(-last // K) * K

  def order(self, rows: np.ndarray) -> np.ndarray:
    """Return the rows of whole heads in Hugging Face's order."""
    pairs = rows.reshape(-1, self.head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


class AdjacentRows(InterleavedRows):
  """The rows of q or k of a LLaMA, in llama.cpp's order, from a tensor in Hugging Face's."""

  def order(self, rows: np.ndarray) -> np.ndarray:
    """Return the rows of whole heads in llama.cpp's order."""
    halves = rows.reshape(-1, 2, self.head_dim // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


class TransposedTensor(NamedTuple):
  """A matrix that Hugging Face stores as (inputs, outputs), and GGUF as (outputs, inputs)."""

  tensor: StoredTensor

  @property
  def shape(self) -> tuple[int, ...]:
    return self.tensor.shape[::-1]

  def numpy(self, first: int = 0, last: int | None = None) -> np.ndarray:
    """Return the values, or rows `first` to `last`; see GGUFTensor.numpy."""
    return self.tensor.numpy().T[first:last]


LLAMA_NAMES = {
  r"token_embd\.": "model.embed_tokens.",
  r"output_norm\.": "model.norm.",
  r"output\.": "lm_head.",
  r"blk\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
  r"blk\.(\d+)\.attn_([qkv])\.": r"model.layers.\1.self_attn.\2_proj.",
  r"blk\.(\d+)\.attn_([qk])_norm\.": r"model.layers.\1.self_attn.\2_norm.",
  r"blk\.(\d+)\.attn_output\.": r"model.layers.\1.self_attn.o_proj.",
  r"blk\.(\d+)\.ffn_norm\.": r"model.layers.\1.post_attention_layernorm.",
  r"blk\.(\d+)\.ffn_(gate|up|down)\.": r"model.layers.\1.mlp.\2_proj.",
}
GPT2_NAMES = {
  r"token_embd\.": "transformer.wte.",
  r"position_embd\.": "transformer.wpe.",
  r"output_norm\.": "transformer.ln_f.",
  r"blk\.(\d+)\.attn_norm\.": r"transformer.h.\1.ln_1.",
  r"blk\.(\d+)\.attn_qkv\.": r"transformer.h.\1.attn.c_attn.",
  r"blk\.(\d+)\.attn_output\.": r"transformer.h.\1.attn.c_proj.",
  r"blk\.(\d+)\.ffn_norm\.": r"transformer.h.\1.ln_2.",
  r"blk\.(\d+)\.ffn_up\.": r"transformer.h.\1.mlp.c_fc.",
  r"blk\.(\d+)\.ffn_down\.": r"transformer.h.\1.mlp.c_proj.",
}
BERT_NAMES = {
  r"token_embd\.": "bert.embeddings.word_embeddings.",
  r"position_embd\.": "bert.embeddings.position_embeddings.",
  r"token_types\.": "bert.embeddings.token_type_embeddings.",
  r"token_embd_norm\.": "bert.embeddings.LayerNorm.",
  r"blk\.(\d+)\.attn_q\.": r"bert.encoder.layer.\1.attention.self.query.",
  r"blk\.(\d+)\.attn_k\.": r"bert.encoder.layer.\1.attention.self.key.",
  r"blk\.(\d+)\.attn_v\.": r"bert.encoder.layer.\1.attention.self.value.",
  r"blk\.(\d+)\.attn_output\.": r"bert.encoder.layer.\1.attention.output.dense.",
  r"blk\.(\d+)\.attn_output_norm\.": r"bert.encoder.layer.\1.attention.output.LayerNorm.",
  r"blk\.(\d+)\.ffn_up\.": r"bert.encoder.layer.\1.intermediate.dense.",
  r"blk\.(\d+)\.ffn_down\.": r"bert.encoder.layer.\1.output.dense.",
  r"blk\.(\d+)\.layer_output_norm\.": r"bert.encoder.layer.\1.output.LayerNorm.",
}


def keys_of(gguf: GGUF, name: str) -> HFConfig:
  """Return the metadata of an architecture without its prefix. Arrays are left out."""
  prefix = f"{name}."
  values = {
    key.removeprefix(prefix): value
    for key, value in gguf.metadata.items()
    if key.startswith(prefix) and not isinstance(value, list | np.ndarray)
  }
  return HFConfig(values, f"{gguf.path} ({name})")


def decoder_config(gguf: GGUF, keys: HFConfig) -> dict[str, Any]:
  """Return the keys of config.json that LLaMA, Qwen2 and Qwen3 share."""
  keys.only(**{"expert_count": 0, "attention.causal": True})
  dim = keys.size("embedding_length")
  heads = keys.size("attention.head_count")
  head_dim = keys.size(
    "attention.key_length", keys.size("rope.dimension_count", max(1, dim // heads))
  )
  keys.only(**{"attention.value_length": head_dim, "rope.dimension_count": head_dim})
  return {
    "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
    "max_position_embeddings": keys.size("context_length"),
    "hidden_size": dim,
    "intermediate_size": keys.size("feed_forward_length"),
    "num_hidden_layers": keys.size("block_count"),
    "num_attention_heads": heads,
    "num_key_value_heads": keys.size("attention.head_count_kv", heads),
    "head_dim": head_dim,
    "hidden_act": "silu",
    "rms_norm_eps": keys.epsilon("attention.layer_norm_rms_epsilon", 1e-6),
    "rope_parameters": rope_parameters(gguf, keys, head_dim),
    # llama.cpp omits the head's matrix if it is that of the token embeddings.
    "tie_word_embeddings": "output.weight" not in gguf.tensors,
  }


def rope_parameters(gguf: GGUF, keys: HFConfig, head_dim: int) -> dict[str, Any]:
  """Return config.json's rope_parameters. Raises ValueError if the file's have no equivalent."""
  theta = keys.number("rope.freq_base", 10000.0, 1, MAX_THETA)
  if ROPE_FACTORS in gguf.tensors:
    factors = gguf.tensors[ROPE_FACTORS].numpy()
    scaling = LLAMA3_SCALING | {"factor": float(factors.max())}
    plain, scaled = (np.array(rope_inv_freq(head_dim, theta, s)) for s in (None, scaling))
    if factors.shape != plain.shape or not np.allclose(plain / factors, scaled, rtol=1e-5):
      raise ValueError(f"{gguf.path}: {ROPE_FACTORS} has factors other than those of LLaMA 3.1")
    return {"rope_theta": theta, **scaling}
  old_factor = keys.number("rope.scale_linear", 1.0, 0, MAX_THETA)
  factor = keys.number("rope.scaling.factor", old_factor, 0, MAX_THETA)
  kind = keys.text("rope.scaling.type", "none" if factor == 1 else "linear")
  if kind == "none":
    return {"rope_theta": theta, "rope_type": "default"}
  parameters = {"rope_theta": theta, "rope_type": kind, "factor": factor}
  if original := keys.optional_size("rope.scaling.original_context_length"):
    parameters["original_max_position_embeddings"] = original
  return parameters


def llama_config(gguf: GGUF, keys: HFConfig) -> dict[str, Any]:
  """Return config.json of a LLaMA, or of a Mistral if there is a sliding window."""
  config = decoder_config(gguf, keys)
  if window := keys.integer("attention.sliding_window", 0):
    names = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    return names | config | {"sliding_window": window}
  return {"model_type": "llama", "architectures": ["LlamaForCausalLM"]} | config


def qwen2_config(gguf: GGUF, keys: HFConfig) -> dict[str, Any]:
  """Return config.json of a Qwen2."""
  names = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
  return names | decoder_config(gguf, keys) | {"use_sliding_window": False}


def qwen3_config(gguf: GGUF, keys: HFConfig) -> dict[str, Any]:
  """Return config.json of a Qwen3."""
  names = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "attention_bias": False}
  return names | decoder_config(gguf, keys) | {"use_sliding_window": False}


def gpt2_config(gguf: GGUF, keys: HFConfig) -> dict[str, Any]:
  """Return config.json of a GPT-2. Its head is tied even if the file has a copy of the matrix."""
  return {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
    "n_positions": keys.size("context_length"),
    "n_ctx": keys.size("context_length"),
    "n_embd": keys.size("embedding_length"),
    "n_inner": keys.size("feed_forward_length"),
    "n_head": keys.size("attention.head_count"),
    "n_layer": keys.size("block_count"),
    "activation_function": "gelu_new",
    "layer_norm_epsilon": keys.epsilon("attention.layer_norm_epsilon", 1e-5),
    "tie_word_embeddings": True,
  }


def bert_config(gguf: GGUF, keys: HFConfig) -> dict[str, Any]:
  """Return config.json of a BERT without a head: llama.cpp uses BERT for embeddings."""
  keys.only(**{"attention.causal": False})
  return {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
    "max_position_embeddings": keys.size("context_length"),
    "hidden_size": keys.size("embedding_length"),
    "intermediate_size": keys.size("feed_forward_length"),
    "num_hidden_layers": keys.size("block_count"),
    "num_attention_heads": keys.size("attention.head_count"),
    "hidden_act": "gelu",
    "layer_norm_eps": keys.epsilon("attention.layer_norm_epsilon", 1e-12),
    "type_vocab_size": gguf.tensors["token_types.weight"].shape[0],
  }


class Architecture(NamedTuple):
  """How to translate a file of an architecture.

  config: returns the content of config.json.
  names: regular expressions of the beginnings of tensor names -> Hugging Face's.
  interleaved: matches tensors with interleaved rows.
  transposed: matches tensors that Hugging Face stores as (inputs, outputs).
  ignored: matches tensors that Hugging Face does not have.
  """

  config: Callable[[GGUF, HFConfig], dict[str, Any]]
  names: dict[str, str]
  interleaved: str = "$^"  # matches nothing
  transposed: str = "$^"
  ignored: str = "$^"


# The values of general.architecture.
ARCHITECTURES = {
  "llama": Architecture(llama_config, LLAMA_NAMES, interleaved=r"blk\.\d+\.attn_[qk]\."),
  "qwen2": Architecture(qwen2_config, LLAMA_NAMES),
  "qwen3": Architecture(qwen3_config, LLAMA_NAMES),
  "gpt2": Architecture(
    gpt2_config,
    GPT2_NAMES,
    transposed=r"blk\.\d+\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight",
    ignored=r"output\.weight",  # a copy of the token embeddings, maybe in another type
  ),
  "bert": Architecture(bert_config, BERT_NAMES),
}


def architecture_of(gguf: GGUF) -> Architecture:
  """Return how to translate a file. Raises ValueError if its architecture is not supported."""
  name = gguf.metadata.get("general.architecture")
  if name not in ARCHITECTURES:
    raise ValueError(
      f"{gguf.path}: the architecture {name!r} is not one of {', '.join(ARCHITECTURES)}"
    )
  if gguf.metadata.get("split.count", 0) > 1:
    raise ValueError(
      f"{gguf.path} is one of {gguf.metadata['split.count']} parts of a model: merge them with "
      "llama.cpp's llama-gguf-split"
    )
  return ARCHITECTURES[name]


def hf_config(gguf: GGUF) -> dict[str, Any]:
  """Return the content of the config.json that describes the model in a file.

  Raises ValueError if a setting is missing, invalid or not supported.
  """
  translate = architecture_of(gguf).config
  try:
    config = translate(gguf, keys_of(gguf, gguf.metadata["general.architecture"]))
  except KeyError as e:
    raise ValueError(f"{gguf.path} lacks the tensor {e}") from e
  ids = {
    f"{name}_token_id": gguf.metadata.get(f"tokenizer.ggml.{key}_token_id")
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
  }
  return config | ids | {"dtype": "float32"}


def pooling_of(gguf: GGUF) -> str:
  """Return sentence-transformers' name of the file's pooling; mean if the file has none.

  Raises ValueError if it is not supported.
  """
  key = f"{gguf.metadata.get('general.architecture')}.pooling_type"
  number = gguf.metadata.get(key, 0)
  if number not in POOLINGS:
    raise ValueError(f"{gguf.path}: {key} {number!r} is not supported; only 0 to 3 are")
  return POOLINGS[number]


def hf_tensors(gguf: GGUF) -> dict[str, StoredTensor]:
  """Return the tensors of a file by Hugging Face's names, in Hugging Face's layout."""
  architecture = architecture_of(gguf)
  head_dim = hf_config(gguf).get("head_dim", 0)
  tensors: dict[str, StoredTensor] = {}
  for name, tensor in gguf.tensors.items():
    if name == ROPE_FACTORS or re.match(architecture.ignored, name):
      continue
    pattern = next((p for p in architecture.names if re.match(p, name)), None)
    hf_name = re.sub(pattern, architecture.names[pattern], name) if pattern else name
    if re.match(architecture.interleaved, name):
      if tensor.shape[0] % head_dim:
        raise ValueError(f"{gguf.path}: {name} of shape {tensor.shape} has no heads of {head_dim}")
      tensors[hf_name] = InterleavedRows(tensor, head_dim)
    elif re.match(architecture.transposed, name):
      tensors[hf_name] = TransposedTensor(tensor)
    else:
      tensors[hf_name] = tensor
  return tensors
