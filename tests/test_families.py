"""What holds for every family: published sizes, and what is not built is told."""
import pytest
from tinygrad import nn
import models
from models import checkpoint, gpt2, llama, mixtral
from models.config import Config

def gpt(**sizes): return gpt2.from_config(Config(dict(vocab_size=50257, n_positions=1024, n_embd=768, n_head=12, n_layer=12) | sizes))

def lla(of=llama, **sizes):
  return of.from_config(Config(dict(vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8) | sizes))

SIZES = {
  "gpt2": (124_439_808, lambda: gpt()), "gpt2-medium": (354_823_168, lambda: gpt(n_embd=1024, n_head=16, n_layer=24)),
  "gpt2-large": (774_030_080, lambda: gpt(n_embd=1280, n_head=20, n_layer=36)), "gpt2-xl": (1_557_611_200, lambda: gpt(n_embd=1600, n_head=25, n_layer=48)),
  "distilgpt2": (81_912_576, lambda: gpt(n_layer=6)),
  "Llama-2-7B": (6_738_415_616, lambda: lla(intermediate_size=11008, num_key_value_heads=32)), "Llama-3-8B": (8_030_261_248, lambda: lla(vocab_size=128256)),
  "Llama-3.2-1B": (1_235_814_400, lambda: lla(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, head_dim=64, tie_word_embeddings=True)),
  "TinyLlama": (1_100_048_384, lambda: lla(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_key_value_heads=4)),
  "SmolLM-135M": (134_515_008, lambda: lla(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                                           tie_word_embeddings=True)),
  "Mistral-7B": (7_241_732_096, lambda: lla()), "Mixtral-8x7B": (46_702_792_704, lambda: lla(mixtral))}

@pytest.mark.parametrize("name", SIZES)
def test_a_published_model_has_its_number_of_parameters(name):
  """Counted from shapes: nothing is allocated."""
  count, make = SIZES[name]
  with checkpoint.undrawn(): assert sum(t.numel() for t in nn.state.get_parameters(make())) == count

def test_a_family_that_does_not_stand_here_is_told(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
  with pytest.raises(ValueError, match="model_type 'rwkv' is not one of gpt2"): models.load(tmp_path)
