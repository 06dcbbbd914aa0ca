"""A real LLaMA, stories260K of llama2.c, against one written out in numpy as that project's C has it."""

import json
import math
import struct

import numpy as np
import pytest
from conftest import shared_data

import gpt
from tinyformer import checkpoints, cli, tokenization
from tinyformer.checkpoints import safetensors
from tinyformer.generation.engine import Engine, generate


def read(path):
  """llama2.c's format: seven sizes, then the matrices of all layers together, one kind after the other."""
  data = path.read_bytes()
  dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("7i", data[:28])
  numbers, K = np.frombuffer(data, np.float32, offset=28), dim // heads
  shapes = {
    "tokens": (vocab, dim),
    "attn_norm": (layers, dim),
    "q": (layers, dim, dim),
    "k": (layers, kv_heads * K, dim),
    "v": (layers, kv_heads * K, dim),
    "out": (layers, dim, dim),
    "ff_norm": (layers, dim),
    "gate": (layers, hidden, dim),
    "down": (layers, dim, hidden),
    "up": (layers, hidden, dim),
    "norm": (dim,),
  }
  w, at = {}, 0
  for name, shape in shapes.items():
    w[name], at = numbers[at : at + math.prod(shape)].reshape(shape), at + math.prod(shape)
  return dict(
    dim=dim,
    ff_dim=hidden,
    num_layers=layers,
    heads=heads,
    kv_heads=kv_heads,
    vocab_size=vocab,
    context=context,
  ), w


def to_tokenizer(path, vocab, folder):
  """Its tokens, a number and then for each its score, its length and its bytes, as a sentencepiece model of merges."""

  def field(number, value):  # of a protobuf message: bytes, a float, or a number below 128
    if isinstance(value, int):
      return (
        bytes([number * 8 % 128 + 128, number // 16, value])
        if number > 15
        else bytes([number * 8, value])
      )
    if isinstance(value, float):
      return bytes([number * 8 + 5]) + struct.pack("<f", value)
    return bytes([number * 8 + 2, len(value)]) + value

  data, at, model = path.read_bytes(), 4, b""
  for i in range(vocab):
    score, n = struct.unpack("fi", data[at : at + 8])
    piece = (
      ("<unk>", "<s>", "</s>")[i] if i < 3 else data[at + 8 : at + 8 + n].decode().replace(" ", "▁")
    )
    model += field(
      1,
      field(1, piece.encode())
      + field(2, score)
      + field(3, (2, 3, 3)[i] if i < 3 else 6 if i < 259 else 1),
    )
    at += 8 + n
  (folder / "tokenizer.model").write_bytes(model + field(2, field(3, 2) + field(35, 1)))


def naive(sizes, w, ids):
  """The likeliest token after each of ids, with pairs of neighbours turned."""
  K, T, x = sizes["dim"] // sizes["heads"], len(ids), w["tokens"][ids]

  def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

  def turn(x):  # (T, heads, K)
    angle = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(0, K, 2) / K)
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
    return np.stack([z.real, z.imag], -1).reshape(x.shape)

  for i in range(sizes["num_layers"]):
    y = norm(x, w["attn_norm"][i])
    q, k, v = ((y @ w[n][i].T).reshape(T, -1, K) for n in "qkv")
    q, k = turn(q), turn(k)
    mixed = np.zeros((T, sizes["heads"], K))
    for h in range(sizes["heads"]):
      g = h // (sizes["heads"] // sizes["kv_heads"])
      scores = q[:, h] @ k[:, g].T / math.sqrt(K) + np.triu(np.full((T, T), -np.inf), 1)
      p = np.exp(scores - scores.max(-1, keepdims=True))
      mixed[:, h] = p / p.sum(-1, keepdims=True) @ v[:, g]
    x = x + mixed.reshape(T, -1) @ w["out"][i].T
    y = norm(x, w["ff_norm"][i])
    gate = y @ w["gate"][i].T
    x = x + (gate / (1 + np.exp(-gate)) * (y @ w["up"][i].T)) @ w["down"][i].T
  return (norm(x, w["norm"]) @ w["tokens"].T).argmax(-1).tolist()


def to_folder(sizes, w, folder):
  """The same as a folder of transformers' layout, whose pairs to turn are halves and not neighbours."""

  def halves(x, heads):
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
  tensors = {"model.embed_tokens.weight": w["tokens"], "model.norm.weight": w["norm"]}
  for i in range(sizes["num_layers"]):
    for ours, name in names.items():
      x = w[ours][i]
      tensors[f"model.layers.{i}.{name}.weight"] = (
        halves(x, sizes["heads"])
        if ours == "q"
        else halves(x, sizes["kv_heads"])
        if ours == "k"
        else x
      )
  safetensors.write_safetensors(folder / "model.safetensors", tensors)
  (folder / "config.json").write_text(
    json.dumps(
      {
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
    )
  )


@pytest.fixture(scope="module")
def story(tmp_path_factory):
  (sizes, w), folder = (
    read(shared_data("checkpoints/stories260K.bin")),
    tmp_path_factory.mktemp("story"),
  )
  to_folder(sizes, w, folder)
  to_tokenizer(shared_data("checkpoints/tok512.bin"), sizes["vocab_size"], folder)
  return sizes, w, folder


def test_its_greedy_text_is_the_naive_ones_and_a_story(story):
  sizes, w, folder = story
  ids = [t for [t] in generate(Engine(checkpoints.load_module(folder)), [1], 200, temperature=0)]
  assert ids == naive(sizes, w, [1, *ids[:-1]])
  assert (
    tokenization.load_tokenizer(folder)
    .decode(ids)
    .startswith(
      "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
  )


def test_gpt_py_tells_it(story, capsys):
  assert (
    cli.run(
      lambda: gpt.main(
        ["-m", str(story[2]), "-p", "Once upon a time, there was a little", "-t", "0", "-n", "20"]
      )
    )
    == 0
  )
  assert capsys.readouterr().out.startswith(
    "Once upon a time, there was a little girl named Lily. She loved to play outside"
  )
