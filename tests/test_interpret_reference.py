"""Compare attention weights and residual streams with transformers.

Needs the extra `reference`; runs in .ci/run.
"""

import numpy as np
import pytest

from tinyformer import checkpoints
from tinyformer.interpret import activations, logit_lens

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import make_fixtures  # noqa: E402

pytestmark = pytest.mark.slow
COMMON = make_fixtures.COMMON
ENCODER = make_fixtures.ENCODER
BART = make_fixtures.BART
SINGLE_STACK = {
  "gpt2": transformers.GPT2Config(**make_fixtures.SHAPES["gpt2-a"]),
  "gpt": transformers.OpenAIGPTConfig(**make_fixtures.FIRST),
  "llama": transformers.LlamaConfig(**COMMON, num_key_value_heads=2),
  "mistral": transformers.MistralConfig(**COMMON, num_key_value_heads=1, sliding_window=4),
  "mixtral": transformers.MixtralConfig(
    **COMMON, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
  ),
  "qwen2": transformers.Qwen2Config(**COMMON, num_key_value_heads=2),
  "qwen3": transformers.Qwen3Config(**COMMON, num_key_value_heads=2, head_dim=6),
  "smollm3": transformers.SmolLM3Config(
    **COMMON, pad_token_id=None, num_key_value_heads=2, no_rope_layers=[0, 1]
  ),
  "gpt_neox": transformers.GPTNeoXConfig(**COMMON | dict(num_attention_heads=2)),
  "bert": transformers.BertConfig(**ENCODER),
  "roberta": transformers.RobertaConfig(**ENCODER),
  "distilbert": transformers.DistilBertConfig(
    vocab_size=61, dim=12, n_heads=3, n_layers=2, hidden_dim=20
  ),
  "modernbert": transformers.ModernBertConfig(
    **ENCODER | dict(num_hidden_layers=4), local_attention=6, pad_token_id=0
  ),
  "deberta": transformers.DebertaV2Config(**ENCODER, **make_fixtures.RELATIVE, position_buckets=4),
}
ENCODER_DECODERS = {
  "t5": transformers.T5Config(**make_fixtures.T5),
  "bart": transformers.BartConfig(**BART),
  "marian": transformers.MarianConfig(**BART | dict(scale_embedding=True)),
}


def save_and_load(auto_class, config, folder):
  """Return a random model of transformers, and the same model loaded here."""
  config._attn_implementation = "eager"  # the only implementation that returns attention weights
  reference = auto_class.from_config(config).eval()
  make_fixtures.randomise(reference, 3)
  reference.save_pretrained(folder)
  return reference, checkpoints.load_module(folder)


def assert_same_weights(actual, expected):
  np.testing.assert_allclose(actual, torch.cat(expected).numpy(), atol=2e-5)


def random_ids(n, seed=5):
  return np.random.default_rng(seed).integers(4, 60, n).tolist()


@pytest.mark.parametrize("name", SINGLE_STACK)
def test_attention_weights_and_residual_streams_equal_those_of_transformers(tmp_path, name):
  config = SINGLE_STACK[name]
  ids = random_ids(11)
  is_decoder = name not in ("bert", "roberta", "distilbert", "modernbert", "deberta")
  auto_class = (
    transformers.AutoModelForCausalLM if is_decoder else transformers.AutoModelForMaskedLM
  )
  reference, model = save_and_load(auto_class, config, tmp_path)
  with torch.no_grad():
    expected = reference(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
  actual = activations.run(model, ids)[""]
  assert_same_weights(actual.attention_weights(), expected.attentions)
  streams = actual.residual_streams()
  # The last hidden state of transformers is the output of the final norm.
  streams[-1] = logit_lens.apply_final_norm(actual, streams[-1])
  for stream, hidden_state in zip(streams, expected.hidden_states, strict=True):
    np.testing.assert_allclose(stream, hidden_state[0].numpy(), atol=1e-4)
  logits = logit_lens.head_logits(model, streams[-1])
  np.testing.assert_allclose(logits, expected.logits[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_weights_of_an_encoder_decoder_equal_those_of_transformers(tmp_path, name):
  auto_class = transformers.AutoModelForSeq2SeqLM
  reference, model = save_and_load(auto_class, ENCODER_DECODERS[name], tmp_path)
  source = random_ids(11)
  target = [0, *random_ids(6, 6)]
  with torch.no_grad():
    expected = reference(
      input_ids=torch.tensor([source]),
      decoder_input_ids=torch.tensor([target]),
      output_attentions=True,
    )
  stacks = activations.run(model, source, target)
  decoder = stacks["decoder"]
  assert_same_weights(stacks["encoder"].attention_weights(), expected.encoder_attentions)
  assert_same_weights(decoder.attention_weights(), expected.decoder_attentions)
  assert_same_weights(decoder.attention_weights("cross"), expected.cross_attentions)


def test_attention_weights_of_a_vit_equal_those_of_transformers(tmp_path):
  config = transformers.ViTConfig(
    image_size=12,
    patch_size=4,
    hidden_size=18,
    num_attention_heads=3,
    num_hidden_layers=2,
    intermediate_size=30,
  )
  auto_class = transformers.AutoModelForImageClassification
  reference, model = save_and_load(auto_class, config, tmp_path)
  pixels = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)
  with torch.no_grad():
    expected = reference(torch.tensor(pixels), output_attentions=True)
  actual = activations.run(model, pixels)[""]
  assert_same_weights(actual.attention_weights(), expected.attentions)
