"""All architectures: parameter counts, the tables of docs/models.md, and small separate files."""

import ast
import re

import pytest
from conftest import FIXTURES, ROOT, uninitialized
from tinygrad import Tensor, nn

import models
from layers.activations import gelu, gelu_tanh
from layers.attention import NoPEAttention, QKNormAttention
from layers.blocks import ParallelBlock
from layers.feedforward import GatedFeedForward
from layers.moe import MixtureOfExperts
from layers.norms import pre_norm
from layers.parts import PLAIN
from models import gpt_neox, llama, mixtral, modernbert, qwen2, qwen3, smollm3
from models.deberta import DisentangledAttention
from models.hf_config import HFConfig
from tinyformer import checkpoints
from transformer import dot_product

MISTRAL_7B = dict(
  vocab_size=32000,
  hidden_size=4096,
  intermediate_size=14336,
  num_hidden_layers=32,
  num_attention_heads=32,
  num_key_value_heads=8,
)


def untrained(module=llama, model_class=llama.Llama, **sizes):
  """Return a model with the sizes of Mistral 7B, except for the given ones, and no values."""
  return uninitialized(model_class, module.from_hf(HFConfig(MISTRAL_7B | sizes)))


SIZES = {
  "Llama-2-7B": (6_738_415_616, lambda: untrained(intermediate_size=11008, num_key_value_heads=32)),
  "Llama-3-8B": (8_030_261_248, lambda: untrained(vocab_size=128256)),
  "Llama-3.2-1B": (
    1_235_814_400,
    lambda: untrained(
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
    lambda: untrained(
      hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_key_value_heads=4
    ),
  ),
  "SmolLM-135M": (
    134_515_008,
    lambda: untrained(
      vocab_size=49152,
      hidden_size=576,
      intermediate_size=1536,
      num_hidden_layers=30,
      num_attention_heads=9,
      num_key_value_heads=3,
      tie_word_embeddings=True,
    ),
  ),
  "Mistral-7B": (7_241_732_096, untrained),
  "Mixtral-8x7B": (46_702_792_704, lambda: untrained(mixtral, mixtral.Mixtral)),
  "SmolLM3-3B": (
    3_075_098_624,
    lambda: untrained(
      smollm3,
      smollm3.SmolLM3,
      vocab_size=128256,
      hidden_size=2048,
      intermediate_size=11008,
      num_hidden_layers=36,
      num_attention_heads=16,
      num_key_value_heads=4,
    ),
  ),
  "Pythia-70M": (
    70_426_624,
    lambda: untrained(
      gpt_neox,
      gpt_neox.GPTNeoX,
      vocab_size=50304,
      hidden_size=512,
      intermediate_size=2048,
      num_hidden_layers=6,
      num_attention_heads=8,
    ),
  ),
  "GPT-NeoX-20B": (
    20_554_567_680,
    lambda: untrained(
      gpt_neox,
      gpt_neox.GPTNeoX,
      vocab_size=50432,
      hidden_size=6144,
      intermediate_size=24576,
      num_hidden_layers=44,
      num_attention_heads=64,
    ),
  ),
  "Qwen2-0.5B": (
    494_032_768,
    lambda: untrained(
      qwen2,
      qwen2.Qwen2,
      vocab_size=151936,
      hidden_size=896,
      intermediate_size=4864,
      num_hidden_layers=24,
      num_attention_heads=14,
      num_key_value_heads=2,
      tie_word_embeddings=True,
    ),
  ),
  "Qwen3-0.6B": (
    596_049_920,
    lambda: untrained(
      qwen3,
      qwen3.Qwen3,
      vocab_size=151936,
      hidden_size=1024,
      intermediate_size=3072,
      num_hidden_layers=28,
      num_attention_heads=16,
      tie_word_embeddings=True,
    ),
  ),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_models_have_their_parameter_counts(name):
  """The shapes suffice to count parameters, so no memory is allocated."""
  count, make = SIZES[name]
  assert sum(t.numel() for t in nn.state.get_parameters(make())) == count


def test_an_unknown_model_type_raises_an_error_that_names_it(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
  with pytest.raises(ValueError, match=r'model_type must be one of gpt2, .*, not "rwkv"'):
    checkpoints.load_module(tmp_path)


# The tables of the parts of each architecture in docs/models.md

TABLE = {
  "GPT": "gpt1-a",
  "GPT-2": "gpt2-a",
  "BERT": "bert-a",
  "RoBERTa, CamemBERT": "roberta-a",
  "DistilBERT": "distilbert-a",
  "ModernBERT": "modernbert-a",
  "DeBERTa v2, v3": "deberta-a",
  "T5": "t5-a",
  "T5 1.1, Flan-T5": "t5-b",
  "BART": "bart-a",
  "Marian": "marian-a",
  "LLaMA": "llama-a",
  "Mistral": "mistral-a",
  "Mixtral": "mixtral-a",
  "Qwen2, Qwen2.5": "qwen2-a",
  "Qwen3": "qwen3-a",
  "SmolLM3": "smollm3-a",
  "GPT-NeoX, Pythia": "gpt_neox-a",
  "ViT": "vit-a",
}
ACTIVATION_NAMES = {
  gelu_tanh: "GELU (tanh approximation)",
  gelu: "GELU",
  Tensor.relu: "ReLU",
  Tensor.silu: "SiLU",
}
NETWORK_NAMES = {
  GatedFeedForward: "gated, ",
  MixtureOfExperts: "mixture of experts: two of eight gated networks, ",
}


def documented_parts():
  """Return the cells of the tables in docs/models.md as {architecture: {column: text}}."""
  rows = {}
  header = []
  for line in (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines():
    cells = [cell.strip() for cell in line.split("|")][1:-1]
    if line.startswith("| Model |"):
      header = cells[1:]
    elif line.startswith("| ") and header and not line.startswith("| ---"):
      row = rows.setdefault(cells[0].split(" (")[0], {})
      row.update(zip(header, cells[1:], strict=True))
    elif not line.startswith("|"):
      header = []
  return rows


ROWS = documented_parts()


def kind_of(model):
  if hasattr(model, "decoder"):
    return "encoder-decoder"
  return "decoder" if model.task == "text-generation" else "encoder"


def positions_of(model, stack, parameters):
  if any(isinstance(block.attn, NoPEAttention) for block in stack.blocks):
    return "rotary, none in every fourth layer"
  if isinstance(model, modernbert.ModernBert):
    return "rotary, with another theta in local layers"
  if isinstance(model, gpt_neox.GPTNeoX):
    return "rotary, in a quarter of each head"
  if hasattr(model, "inv_freq"):
    return "rotary"
  if any(re.search(r"positions(\.table)?(\.weight)?$", n) for n in parameters):
    return "learned, added"
  if hasattr(model, "relative") or getattr(stack, "bias", None):
    return "relative"
  return "sinusoids in halves"


def norm_of(block):
  name = type(block.ff_norm).__name__.removeprefix("Unbiased")
  if isinstance(block, ParallelBlock):
    return f"{name} before each sublayer and at the end; sublayers are parallel"
  if getattr(block.residual, "func", block.residual) is pre_norm:
    return f"{name} before each sublayer and at the end"
  return f"{name} after each sublayer"


def biases_of(attn):
  if attn.q.bias is None:
    return "none"
  return "all" if attn.out.bias is not None else "q, k and v"


def similarity_of(attn):
  if isinstance(attn, QKNormAttention):
    return "scaled dot product of normalized heads"
  if isinstance(attn, DisentangledAttention):
    return "content to position"
  options = getattr(attn.attention_fn, "keywords", {})
  return "dot product" if options.get("similarity") is dot_product else "scaled dot product"


def parts_of(model):
  """Return the words that each column of a model's row must contain."""
  stack = getattr(model, "decoder", model)
  block = stack.blocks[0]
  parameters = nn.state.get_state_dict(model)
  kind = kind_of(model)
  network = NETWORK_NAMES.get(type(block.ff), "")
  has_own_head = "head.weight" in parameters and "decoder" in kind
  return {
    "kind": kind,
    "attention": "causal" if "decoder" in kind else "",
    "similarity": similarity_of(block.attn),
    "positions": positions_of(model, stack, parameters),
    "feed-forward": network + ACTIVATION_NAMES[block.ff.activation],
    "norm": norm_of(block),
    "biases": biases_of(block.attn),
    "head": "separate" if has_own_head else "tied",
  }


def test_every_architecture_is_in_both_tables():
  assert ROWS.keys() == TABLE.keys() | {"Transformer"}
  assert all(len(row) == 8 for row in ROWS.values())


@pytest.mark.parametrize("family", TABLE)
def test_the_tables_of_the_documentation_list_the_parts_of_each_model(family):
  row = ROWS[family]
  model = checkpoints.load_module(FIXTURES / TABLE[family], parts=PLAIN)
  parts = parts_of(model)
  for column, words in parts.items():
    # The head of ViT depends on the task.
    if (column, family) != ("head", "ViT"):
      assert words in row[column], f"{family}, {column}: {words}"
  assert row["feed-forward"] == parts["feed-forward"]
  assert ("causal" in row["attention"]) == ("decoder" in parts["kind"])


def modules():
  return {name.split(".")[0] for name in models.FAMILIES.values()}


def test_each_architecture_is_one_short_file():
  for name in modules():
    assert len((ROOT / "models" / f"{name}.py").read_text().splitlines()) <= 350, name


def test_shared_code_names_no_architecture():
  """No identifier of transformer.py or layers/ contains the name of an architecture."""
  model_types = {kind.split("-")[-1] for kind in models.FAMILIES}
  names = (modules() | model_types) - {"gpt", "v2"}
  for path in [ROOT / "transformer.py", *(ROOT / "layers").glob("*.py")]:
    identifiers = {
      getattr(node, field).lower()
      for node in ast.walk(ast.parse(path.read_text()))
      for field in ("id", "name", "attr", "arg")
      if isinstance(getattr(node, field, None), str)
    }
    assert not {i for i in identifiers if set(i.split("_")) & names}, path
