"""The block of each line of models.RECIPES computes what the model's own block computes."""

from types import SimpleNamespace

import pytest
from conftest import close, normal, randomise
from tinygrad import Tensor, nn

from models import (
  RECIPES,
  bart,
  bert,
  deberta,
  distilbert,
  gpt1,
  gpt2,
  gpt_neox,
  llama,
  marian,
  mixtral,
  modernbert,
  qwen2,
  qwen3,
  roberta,
  smollm3,
  t5,
  vit,
)
from transformer import Transformer

T, S, D, H, F = 5, 7, 12, 3, 20
SIZES = dict(vocab_size=11, context=9, dim=D, heads=H, num_layers=1, ff_dim=F)
LLAMA = SIZES | dict(heads=6, kv_heads=3, head_dim=4)
NEOX = SIZES | dict(kv_heads=H, head_dim=4, rope_dim=2)
MODERN = SIZES | dict(num_layers=2)
T5 = dict(vocab_size=11, dim=D, heads=H, head_dim=4, ff_dim=F, encoder_layers=1, decoder_layers=1)
BART = dict(
  vocab_size=11,
  context=9,
  dim=D,
  encoder_heads=H,
  decoder_heads=H,
  encoder_ff_dim=F,
  decoder_ff_dim=F,
  encoder_layers=1,
  decoder_layers=1,
)
EPS = 1e-5  # of transformer.py's and BART's norms
MODELS = {
  "gpt": lambda: gpt1.GPT(gpt1.GPTConfig(**SIZES)),
  "gpt2": lambda: gpt2.GPT2(gpt2.GPT2Config(**SIZES)),
  "llama": lambda: llama.Llama(llama.LlamaConfig(**LLAMA)),
  "mistral": lambda: llama.Llama(llama.LlamaConfig(**LLAMA, window=3)),
  "mixtral": lambda: mixtral.Mixtral(mixtral.MixtralConfig(**LLAMA)),
  "qwen2": lambda: qwen2.Qwen2(llama.LlamaConfig(**LLAMA)),
  "qwen3": lambda: qwen3.Qwen3(llama.LlamaConfig(**LLAMA)),
  "smollm3": lambda: smollm3.SmolLM3(smollm3.SmolLM3Config(**LLAMA, nope_layers=(0,))),
  "gpt_neox": lambda: gpt_neox.GPTNeoX(gpt_neox.GPTNeoXConfig(**NEOX)),
  "bert": lambda: bert.Bert(bert.BertConfig(**SIZES)),
  "roberta": lambda: roberta.Roberta(roberta.RobertaConfig(**SIZES)),
  "distilbert": lambda: distilbert.DistilBert(bert.BertConfig(**SIZES, segments=None)),
  "modernbert": lambda: modernbert.ModernBert(modernbert.ModernBertConfig(**MODERN)),
  "deberta": lambda: deberta.Deberta(deberta.DebertaConfig(**SIZES)),
  "vit": lambda: vit.ViT(vit.ViTConfig(dim=D, heads=H, num_layers=1, ff_dim=F)),
  "t5": lambda: t5.T5(t5.T5Config(**T5)),
  "t5-v1.1": lambda: t5.T5(t5.T5Config(**T5, gated=True, activation="gelu_tanh")),
  "bart": lambda: bart.Bart(bart.BartConfig(**BART)),
  "marian": lambda: marian.Marian(bart.BartConfig(**BART, activation="silu")),
}


def test_every_architecture_has_a_recipe():
  assert RECIPES.keys() == MODELS.keys() | {"transformer"}


@pytest.mark.parametrize("name", RECIPES)
def test_the_block_of_a_recipe_equals_the_models_block(name):
  if name == "transformer":
    config = SimpleNamespace(dim=D, heads=H, ff_dim=F, eps=EPS)
    expected = Transformer(11, D, H, F, num_layers=1, dropout=0.0).decoder.blocks[0]
  else:
    model = MODELS[name]()
    is_bart = name in ("bart", "marian")
    config = SimpleNamespace(dim=D, heads=H, ff_dim=F, eps=EPS) if is_bart else model.config
    # The first block of ModernBERT has one norm less.
    expected = getattr(model, "decoder", model).blocks[name == "modernbert"]
  randomise(expected)
  block = RECIPES[name](config)
  nn.state.load_state_dict(block, nn.state.get_state_dict(expected), verbose=False)
  x = Tensor(normal(2, T, D))
  inputs = {"memory": Tensor(normal(2, S, D, seed=1))} if expected.cross else {}
  if name == "deberta":
    inputs["relative"] = model.relative(T)
  actual = block(x, **inputs).numpy()
  close(actual, expected(x, **inputs).numpy())
  # The recipe uses the parameters, so the comparison cannot pass by chance.
  assert abs(actual - RECIPES[name](config)(x, **inputs).numpy()).max() > 0.1
