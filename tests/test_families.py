"""What holds for every family: published sizes, and what is not built is told."""

import ast

import pytest
from conftest import FIXTURES, ROOT
from tinygrad import Tensor, nn

import models
from layers.feedforward import GatedFeedForward, MixtureOfExperts
from models import llama, mixtral
from tinyformer import checkpoints
from tinyformer.checkpoints import safetensors
from tinyformer.checkpoints.config import ACTIVATIONS, Config
from tinyformer.kernels.gelu import gelu
from transformer import Linear, attention, dot_product, pre_norm, scaled_dot_product


def lla(of=llama, **sizes):
  return of.from_config(
    Config(
      dict(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
      )
      | sizes
    )
  )


SIZES = {
  "Llama-2-7B": (6_738_415_616, lambda: lla(intermediate_size=11008, num_key_value_heads=32)),
  "Llama-3-8B": (8_030_261_248, lambda: lla(vocab_size=128256)),
  "Llama-3.2-1B": (
    1_235_814_400,
    lambda: lla(
      vocab_size=128256,
      hidden_size=2048,
      intermediate_size=8192,
      num_hidden_layers=16,
      head_dim=64,
      tie_word_embeddings=True,
    ),
  ),
  "TinyLlama": (
    1_100_048_384,
    lambda: lla(
      hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_key_value_heads=4
    ),
  ),
  "SmolLM-135M": (
    134_515_008,
    lambda: lla(
      vocab_size=49152,
      hidden_size=576,
      intermediate_size=1536,
      num_hidden_layers=30,
      num_attention_heads=9,
      num_key_value_heads=3,
      tie_word_embeddings=True,
    ),
  ),
  "Mistral-7B": (7_241_732_096, lambda: lla()),
  "Mixtral-8x7B": (46_702_792_704, lambda: lla(mixtral)),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_published_model_has_its_number_of_parameters(name):
  """Counted from shapes: nothing is allocated."""
  count, make = SIZES[name]
  with safetensors.skip_init():
    assert sum(t.numel() for t in nn.state.get_parameters(make())) == count


def test_a_family_that_does_not_stand_here_is_told(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
  with pytest.raises(ValueError, match="model_type 'rwkv' is not one of gpt2"):
    checkpoints.load_module(tmp_path)


# README.md's table of families by their parts, against the parts

TABLE = {
  "GPT": "gpt1-a",
  "GPT-2": "gpt2-a",
  "BERT": "bert-a",
  "RoBERTa, CamemBERT": "roberta-a",
  "DeBERTa v2, v3": "deberta-a",
  "T5": "t5-a",
  "T5 1.1, Flan-T5": "t5-b",
  "BART": "bart-a",
  "Marian": "marian-a",
  "LLaMA": "llama-a",
  "Mistral": "mistral-a",
  "Mixtral": "mixtral-a",
  "ViT": "vit-a",
}
ROWS = {
  cells[1].split(" (")[0]: dict(
    zip(
      ["kind", "attention", "similarity", "positions", "norm", "feed-forward", "bias", "head"],
      cells[2:-1],
    )
  )
  for line in (ROOT / "README.md").read_text().splitlines()
  if line.startswith("| ") and len(cells := [c.strip() for c in line.split("|")]) == 11
}


def parts(model):
  """What a row has to say: for each column, words that stand in it, and words that do not."""
  last = getattr(model, "decoder", model)  # of two stacks the decoder
  block, state = last.blocks[0], nn.state.get_state_dict(model)
  residual = getattr(block.residual, "func", block.residual)
  activation = {
    gelu: "GELU (tanh form)",
    ACTIVATIONS["gelu"]: "GELU",
    Tensor.relu: "ReLU",
    Tensor.silu: "SiLU",
  }[block.ff.activation]
  kind = (
    "encoder-decoder"
    if hasattr(model, "decoder")
    else "decoder"
    if hasattr(model, "cache")
    else "encoder"
  )
  similarity = {scaled_dot_product: "scaled dot product", dot_product: "dot product"}.get(
    getattr(block.attn, "similarity", None), "contents with places"
  )
  gate = {GatedFeedForward: "gated, ", MixtureOfExperts: "two of eight gated ones, "}.get(
    type(block.ff), ""
  )
  positions = (
    "rotary"
    if hasattr(model, "inv_freq")
    else "learned, added"
    if any(n.split(".")[-2:] in (["positions", "weight"], ["positions"]) for n in state)
    else "relative"
    if hasattr(model, "relative") or getattr(last, "bias", None)
    else "sinusoids in halves"
  )
  where = "before" if residual is pre_norm else "after"
  return {
    "kind": kind,
    "attention": "causal" if "decoder" in kind else "",
    "similarity": similarity,
    "positions": positions,
    "feed-forward": gate + activation,
    "norm": f"{type(block.attn_norm).__name__} {where} each sublayer{' and at the end' if where == 'before' else ''}",
    "bias": "everywhere" if block.attn.q.bias is not None else "nowhere",
    "head": "its own" if "head.weight" in state and "decoder" in kind else "tied",
  }


@pytest.mark.parametrize("family", TABLE)
def test_the_readmes_table_says_what_the_parts_are(family):
  row, of = (
    ROWS[family],
    parts(
      checkpoints.load_module(
        FIXTURES / TABLE[family], attention_fn=attention, linear=Linear, layer_norm=nn.LayerNorm
      )
    ),
  )
  for column, words in of.items():
    if (column, family) == ("head", "ViT"):
      continue
    assert words in row[column], f"{family}, {column}: {words}"
  assert row["feed-forward"] == of["feed-forward"] and ("causal" in row["attention"]) == (
    "decoder" in of["kind"]
  )


def test_a_family_is_a_short_file_and_no_part_knows_one():
  """One file of at most 300 lines each; transformer.py and layers/ name none of them."""
  names = {*models.FAMILIES.values(), *(kind.split("-")[-1] for kind in models.FAMILIES)} - {
    "gpt",
    "v2",
  }
  for name in models.FAMILIES.values():
    assert len((ROOT / "models" / f"{name}.py").read_text().splitlines()) <= 300, name
  for path in [ROOT / "transformer.py", *(ROOT / "layers").glob("*.py")]:
    identifiers = {
      getattr(n, field).lower()
      for n in ast.walk(ast.parse(path.read_text()))
      for field in ("id", "name", "attr", "arg")
      if isinstance(getattr(n, field, None), str)
    }
    assert not {i for i in identifiers if set(i.split("_")) & names}, path
