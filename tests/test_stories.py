"""A published LLaMA, stories260K of llama2.c, against a numpy version of that project's C code."""

import json
import math
import struct

import numpy as np
import pytest
from conftest import shared_data

import gpt
from tinyformer import checkpoints, cli, tokenization
from tinyformer.checkpoints import safetensors
from tinyformer.generation import Engine, generate

# Field types of a SentencePiece model, and its values for a BPE model with byte tokens.
UNKNOWN, CONTROL, BYTE, NORMAL = 2, 3, 6, 1
BPE = 2


def read_checkpoint(path):
  """Read a checkpoint of llama2.c, and return the sizes and the weights.

  The file contains seven sizes, then the weights; each is the stack of all layers' matrices.
  """
  data = path.read_bytes()
  header = struct.unpack("7i", data[:28])
  dim, ff_dim, num_layers, heads, kv_heads, vocab_size, context = header
  numbers = np.frombuffer(data, np.float32, offset=28)
  head_dim = dim // heads
  shapes = {
    "tokens": (vocab_size, dim),
    "attn_norm": (num_layers, dim),
    "q": (num_layers, dim, dim),
    "k": (num_layers, kv_heads * head_dim, dim),
    "v": (num_layers, kv_heads * head_dim, dim),
    "out": (num_layers, dim, dim),
    "ff_norm": (num_layers, dim),
    "gate": (num_layers, ff_dim, dim),
    "down": (num_layers, dim, ff_dim),
    "up": (num_layers, ff_dim, dim),
    "norm": (dim,),
  }
  weights = {}
  offset = 0
  for name, shape in shapes.items():
    end = offset + math.prod(shape)
    weights[name] = numbers[offset:end].reshape(shape)
    offset = end
  sizes = dict(
    dim=dim,
    ff_dim=ff_dim,
    num_layers=num_layers,
    heads=heads,
    kv_heads=kv_heads,
    vocab_size=vocab_size,
    context=context,
  )
  return sizes, weights


def protobuf_field(number, value):
  """Encode a field of a protobuf message: bytes, a float, or an integer below 128."""
  if isinstance(value, int):
    key = [number * 8 % 128 + 128, number // 16] if number > 15 else [number * 8]
    return bytes([*key, value])
  if isinstance(value, float):
    return bytes([number * 8 + 5]) + struct.pack("<f", value)
  return bytes([number * 8 + 2, len(value)]) + value


def write_tokenizer(path, vocab_size, folder):
  """Convert a tokenizer of llama2.c to a SentencePiece BPE model in `folder`.

  The file contains an integer, then the score, the length and the bytes of each token.
  """
  data = path.read_bytes()
  special = {0: ("<unk>", UNKNOWN), 1: ("<s>", CONTROL), 2: ("</s>", CONTROL)}
  model = b""
  offset = 4
  for i in range(vocab_size):
    score, length = struct.unpack("fi", data[offset : offset + 8])
    offset += 8
    if i in special:
      piece, kind = special[i]
    else:
      piece = data[offset : offset + length].decode().replace(" ", "▁")
      kind = BYTE if i < 259 else NORMAL
    offset += length
    fields = protobuf_field(1, piece.encode()) + protobuf_field(2, score) + protobuf_field(3, kind)
    model += protobuf_field(1, fields)
  trainer = protobuf_field(3, BPE) + protobuf_field(35, 1)
  (folder / "tokenizer.model").write_bytes(model + protobuf_field(2, trainer))


def naive_argmax(sizes, weights, ids):
  """Return the token with the highest logit after each of the ids, with interleaved RoPE."""
  K = sizes["dim"] // sizes["heads"]
  T = len(ids)
  x = weights["tokens"][ids]

  def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

  def rope(x):
    """Rotate adjacent pairs of x (T, heads, K)."""
    angle = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(0, K, 2) / K)
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
    return np.stack([z.real, z.imag], -1).reshape(x.shape)

  causal_mask = np.triu(np.full((T, T), -np.inf), 1)
  for i in range(sizes["num_layers"]):
    y = norm(x, weights["attn_norm"][i])
    q, k, v = ((y @ weights[name][i].T).reshape(T, -1, K) for name in "qkv")
    q = rope(q)
    k = rope(k)
    head_outputs = np.zeros((T, sizes["heads"], K))
    for head in range(sizes["heads"]):
      kv_head = head // (sizes["heads"] // sizes["kv_heads"])
      scores = q[:, head] @ k[:, kv_head].T / math.sqrt(K) + causal_mask
      p = np.exp(scores - scores.max(-1, keepdims=True))
      head_outputs[:, head] = p / p.sum(-1, keepdims=True) @ v[:, kv_head]
    x = x + head_outputs.reshape(T, -1) @ weights["out"][i].T
    y = norm(x, weights["ff_norm"][i])
    gate = y @ weights["gate"][i].T
    silu = gate / (1 + np.exp(-gate))
    x = x + (silu * (y @ weights["up"][i].T)) @ weights["down"][i].T
  return (norm(x, weights["norm"]) @ weights["tokens"].T).argmax(-1).tolist()


def write_checkpoint(sizes, weights, folder):
  """Write the model in the layout of transformers, whose RoPE pairs are halves of each head."""

  def interleaved_to_halves(x, heads):
    return x.reshape(heads, -1, 2, sizes["dim"]).swapaxes(1, 2).reshape(x.shape)

  names = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
  }
  rotated_heads = {"q": sizes["heads"], "k": sizes["kv_heads"]}
  tensors = {"model.embed_tokens.weight": weights["tokens"], "model.norm.weight": weights["norm"]}
  for i in range(sizes["num_layers"]):
    for ours, name in names.items():
      x = weights[ours][i]
      if ours in rotated_heads:
        x = interleaved_to_halves(x, rotated_heads[ours])
      tensors[f"model.layers.{i}.{name}.weight"] = x
  safetensors.write_safetensors(folder / "model.safetensors", tensors)
  config = {
    "model_type": "llama",
    "vocab_size": sizes["vocab_size"],
    "hidden_size": sizes["dim"],
    "num_attention_heads": sizes["heads"],
    "num_key_value_heads": sizes["kv_heads"],
    "num_hidden_layers": sizes["num_layers"],
    "intermediate_size": sizes["ff_dim"],
    "max_position_embeddings": sizes["context"],
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
  }
  (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
  """Return the sizes, the weights and a folder with the converted checkpoint and tokenizer."""
  sizes, weights = read_checkpoint(shared_data("checkpoints/stories260K.bin"))
  folder = tmp_path_factory.mktemp("stories")
  write_checkpoint(sizes, weights, folder)
  write_tokenizer(shared_data("checkpoints/tok512.bin"), sizes["vocab_size"], folder)
  return sizes, weights, folder


def test_greedy_tokens_equal_the_naive_implementation_and_decode_to_a_story(stories):
  sizes, weights, folder = stories
  engine = Engine(checkpoints.load_module(folder))
  ids = [token for [token] in generate(engine, [1], 200, temperature=0)]
  assert ids == naive_argmax(sizes, weights, [1, *ids[:-1]])
  text = tokenization.load_tokenizer(folder).decode(ids)
  assert text.startswith(
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
  )


def test_gpt_py_generates_the_story(stories, capsys):
  _, _, folder = stories
  prompt = "Once upon a time, there was a little"
  arguments = ["-m", str(folder), "-p", prompt, "-t", "0", "-n", "20"]
  assert cli.run(lambda: gpt.main(arguments)) == 0
  assert capsys.readouterr().out.startswith(
    "Once upon a time, there was a little girl named Lily. She loved to play outside"
  )
