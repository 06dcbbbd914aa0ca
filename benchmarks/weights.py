"""Random weights of the measured shapes, in folders that every system can load."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.llama_cpp import vocabulary_file


@dataclass(frozen=True)
class Shape:
  """The shape of a measured model.

  vocabulary: llama.cpp's name of its vocabulary.  parameters: their number.
  embedding: the number of parameters that only decoding reads, in the head.
  """

  vocabulary: str
  parameters: int
  embedding: int


SHAPES = {
  "gpt2": Shape("gpt-2", 124_439_808, 50_257 * 768),
  "llama-1b": Shape("llama-bpe", 1_235_814_400, 128_256 * 2048),
}
# The config.json of Llama-3.2-1B.
LLAMA_1B = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "dtype": "bfloat16",
  "vocab_size": 128_256,
  "max_position_embeddings": 131_072,
  "hidden_size": 2048,
  "intermediate_size": 8192,
  "num_hidden_layers": 16,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
  "head_dim": 64,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-5,
  "rope_theta": 500_000.0,
  "rope_scaling": {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  },
  "attention_bias": False,
  "mlp_bias": False,
  "tie_word_embeddings": True,
  "bos_token_id": 128_000,
  "eos_token_id": 128_001,
}


def random_ids(batch: int, length: int) -> np.ndarray:
  """Return random token ids (batch, length)."""
  return np.random.default_rng(1).integers(0, 50_000, (batch, length))


def make_weights(model: str, folder: Path, llama: Path) -> None:
  """Save a shape with random weights and a vocabulary in a folder.

  llama: the folder of llama.cpp. Without it, the tokens of the vocabulary are made up.
  """
  if model == "gpt2":
    make_gpt2(folder)
  else:
    make_llama(folder)
  file = vocabulary_file(llama, SHAPES[model].vocabulary)
  if file.exists():
    copy_vocabulary(file, folder)
  else:
    make_up_vocabulary(folder)


def make_gpt2(folder: Path) -> None:
  """Save GPT-2's smallest shape (124,439,808 parameters) in float32."""
  from tinyformer.device import select_device

  select_device()
  from tinygrad import Tensor, nn

  from models.gpt2 import GPT2, GPT2Config
  from tinyformer import checkpoints

  model = GPT2(GPT2Config())
  rng = np.random.default_rng(0)
  for parameter in nn.state.get_parameters(model):
    noise = rng.standard_normal(parameter.shape, dtype=np.float32) * np.float32(0.02)
    parameter.replace(Tensor(noise + np.float32(parameter.ndim == 1)))
  checkpoints.save(model, folder, eos_token_id=50256, bos_token_id=50256)


def llama_shapes(config: dict) -> dict[str, tuple[int, ...]]:
  """Return the shape of each tensor of a Llama, by Hugging Face's names."""
  dim = config["hidden_size"]
  ff_dim = config["intermediate_size"]
  queries = config["num_attention_heads"] * config["head_dim"]
  keys = config["num_key_value_heads"] * config["head_dim"]
  block = {
    "self_attn.q_proj": (queries, dim),
    "self_attn.k_proj": (keys, dim),
    "self_attn.v_proj": (keys, dim),
    "self_attn.o_proj": (dim, queries),
    "mlp.gate_proj": (ff_dim, dim),
    "mlp.up_proj": (ff_dim, dim),
    "mlp.down_proj": (dim, ff_dim),
    "input_layernorm": (dim,),
    "post_attention_layernorm": (dim,),
  }
  shapes: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (config["vocab_size"], dim),
    "model.norm.weight": (dim,),
  }
  for layer in range(config["num_hidden_layers"]):
    shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
  return shapes


def make_llama(folder: Path, config: dict = LLAMA_1B, shards: int = 3) -> None:
  """Save a Llama in bfloat16, in several files as large checkpoints have them."""
  shapes = llama_shapes(config)
  names = list(shapes)
  rng = np.random.default_rng(0)
  files: dict[str, str] = {}
  for shard in range(shards):
    file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
    in_shard = {name: shapes[name] for name in names[shard::shards]}
    write_safetensors(folder / file, in_shard, "BF16", rng)
    files |= dict.fromkeys(in_shard, file)
  index = {"metadata": {}, "weight_map": files}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  (folder / "config.json").write_text(json.dumps(config, indent=1))


def write_safetensors(
  file: Path, shapes: dict[str, tuple[int, ...]], dtype: str, rng: np.random.Generator
) -> None:
  """Write random tensors of these shapes, in dtype F32 or BF16. Vectors have a mean of 1."""
  item_size = {"F32": 4, "BF16": 2}[dtype]
  header: dict[str, dict] = {}
  end = 0
  for name, shape in shapes.items():
    start, end = end, end + item_size * int(np.prod(shape))
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  with open(file, "wb") as f:
    f.write(len(text).to_bytes(8, "little") + text)
    for shape in shapes.values():
      for values in random_rows(shape, rng):
        if dtype == "BF16":  # the upper half of a float32
          values = (values.view(np.uint32) >> 16).astype(np.uint16)
        f.write(values.tobytes())


def random_rows(shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[np.ndarray]:
  """Yield a random tensor of this shape in parts of at most 4,096 rows."""
  for start in range(0, shape[0], 4096):
    rows = min(4096, shape[0] - start)
    noise = rng.standard_normal((rows, *shape[1:]), dtype=np.float32) * np.float32(0.02)
    yield noise + np.float32(len(shape) == 1)


def copy_vocabulary(file: Path, folder: Path) -> None:
  """Write the vocabulary of a GGUF file as the files of a Hugging Face tokenizer."""
  from tinyformer.checkpoints.gguf import read_gguf
  from tinyformer.checkpoints.gguf_tokenizer import tokenizer_config, tokenizer_json

  gguf = read_gguf(file)
  if gguf.metadata["tokenizer.ggml.pre"] == "gpt-2":
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    merges = gguf.metadata["tokenizer.ggml.merges"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    return
  write_text(folder / "tokenizer.json", json.dumps(tokenizer_json(gguf), ensure_ascii=False))
  write_text(folder / "tokenizer_config.json", json.dumps(tokenizer_config(gguf)))


def make_up_vocabulary(folder: Path) -> None:
  """Write GPT-2's number of made-up tokens: the bytes, and pairs of letters."""
  from tinyformer.tokenization.byte_level_bpe import (
    END,
    LETTERS,
    BytePairEncoding,
    bytes_to_unicode,
  )

  merges = [(bytes([a]), bytes([b])) for a in LETTERS for b in LETTERS][:50_000]
  tokens = [bytes([b]) for b in LETTERS] + [a + b for a, b in merges]
  vocabulary = {bytes_to_unicode(token): i for i, token in enumerate(tokens)}
  BytePairEncoding(merges, vocabulary | {END: 50256}).save(folder)


def write_text(file: Path, text: str) -> None:
  file.write_text(text, encoding="utf-8")


# The config.json of all-MiniLM-L6-v2.
MINILM = {
  "model_type": "bert",
  "architectures": ["BertModel"],
  "vocab_size": 30_522,
  "max_position_embeddings": 512,
  "hidden_size": 384,
  "intermediate_size": 1536,
  "num_hidden_layers": 6,
  "num_attention_heads": 12,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-12,
  "type_vocab_size": 2,
  "pad_token_id": 0,
}


def bert_shapes(config: dict) -> dict[str, tuple[int, ...]]:
  """Return the shape of each tensor of a BERT, by Hugging Face's names."""
  dim = config["hidden_size"]
  ff_dim = config["intermediate_size"]
  products = {
    "attention.self.query": (dim, dim),
    "attention.self.key": (dim, dim),
    "attention.self.value": (dim, dim),
    "attention.output.dense": (dim, dim),
    "intermediate.dense": (ff_dim, dim),
    "output.dense": (dim, ff_dim),
  }
  norms = ["attention.output.LayerNorm", "output.LayerNorm"]
  shapes: dict[str, tuple[int, ...]] = {
    "embeddings.word_embeddings.weight": (config["vocab_size"], dim),
    "embeddings.position_embeddings.weight": (config["max_position_embeddings"], dim),
    "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], dim),
    "embeddings.LayerNorm.weight": (dim,),
    "embeddings.LayerNorm.bias": (dim,),
    "pooler.dense.weight": (dim, dim),
    "pooler.dense.bias": (dim,),
  }
  for layer in range(config["num_hidden_layers"]):
    prefix = f"encoder.layer.{layer}"
    for name, shape in products.items():
      shapes |= {f"{prefix}.{name}.weight": shape, f"{prefix}.{name}.bias": shape[:1]}
    for name in norms:
      shapes |= {f"{prefix}.{name}.weight": (dim,), f"{prefix}.{name}.bias": (dim,)}
  return shapes


def make_minilm(folder: Path, config: dict = MINILM) -> None:
  """Save a random sentence-transformer with the shape of all-MiniLM-L6-v2."""
  rng = np.random.default_rng(0)
  write_safetensors(folder / "model.safetensors", bert_shapes(config), "F32", rng)
  letters = "abcdefghijklmnopqrstuvwxyz"
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "."]
  characters = [*letters, *(f"##{letter}" for letter in letters)]
  words = [a + b + c + d for a in letters for b in "aeiou" for c in letters for d in letters]
  tokens = (special + characters + words)[: config["vocab_size"]]
  write_text(folder / "vocab.txt", "\n".join([*tokens, ""]))
  library = "sentence_transformers.models"
  modules = [
    {"idx": 0, "name": "0", "path": "", "type": f"{library}.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{library}.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{library}.Normalize"},
  ]
  pooling = {"word_embedding_dimension": config["hidden_size"], "pooling_mode_mean_tokens": True}
  (folder / "1_Pooling").mkdir()
  contents = {
    "config.json": config,
    "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
    "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
    "modules.json": modules,
    "1_Pooling/config.json": pooling,
  }
  for name, content in contents.items():
    write_text(folder / name, json.dumps(content))
