"""What is recorded against transformers itself: attention weights and the residual stream. Needs the extra `reference`; runs in .ci/run."""

import numpy as np
import pytest

from tinyformer import checkpoints
from tinyformer.interpret import activations, logit_lens
from tinyformer.interpret.recorder import Recorder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import make_fixtures
from make_fixtures import BART, COMMON, ENCODER, RELATIVE, T5

pytestmark = pytest.mark.slow
SINGLE = {
  "gpt2": transformers.GPT2Config(**make_fixtures.SHAPES["gpt2-a"]),
  "gpt": transformers.OpenAIGPTConfig(**make_fixtures.FIRST),
  "llama": transformers.LlamaConfig(**COMMON, num_key_value_heads=2),
  "mistral": transformers.MistralConfig(**COMMON, num_key_value_heads=1, sliding_window=4),
  "mixtral": transformers.MixtralConfig(
    **COMMON, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
  ),
  "bert": transformers.BertConfig(**ENCODER),
  "roberta": transformers.RobertaConfig(**ENCODER),
  "deberta": transformers.DebertaV2Config(**ENCODER, **RELATIVE, position_buckets=4),
}
PAIRS = {
  "t5": transformers.T5Config(**T5),
  "bart": transformers.BartConfig(**BART),
  "marian": transformers.MarianConfig(**BART | dict(scale_embedding=True)),
}


def saved(kind, config, folder):
  config._attn_implementation = "lstrip_tokens"  # the others give no weights
  model = kind.from_config(config).eval()
  make_fixtures.randomise(model, 3)
  model.save_pretrained(folder)
  recorder = Recorder()
  return model, checkpoints.load_module(folder, attention_fn=recorder), recorder


def same(ours, theirs):
  np.testing.assert_allclose(ours, torch.cat(theirs).numpy(), atol=2e-5)


def drawn(n, seed=5):
  return np.random.default_rng(seed).integers(4, 60, n).tolist()


@pytest.mark.parametrize("name", SINGLE)
def test_attention_weights_and_streams_are_theirs(tmp_path, name):
  config, ids = SINGLE[name], drawn(11)
  decoder = name in ("gpt2", "gpt", "llama", "mistral", "mixtral")
  kind = transformers.AutoModelForCausalLM if decoder else transformers.AutoModelForMaskedLM
  theirs, ours, recorder = saved(kind, config, tmp_path)
  with torch.no_grad():
    want = theirs(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
  got = activations.run(ours, recorder, ids)[""]
  same(got.maps(), want.attentions)
  streams = [
    *got.streams()[:-1],
    logit_lens.normed(got, got.streams()[-1]),
  ]  # their last has been through the last norm
  for a, b in zip(streams, want.hidden_states, strict=True):
    np.testing.assert_allclose(a, b[0].numpy(), atol=1e-4)
  np.testing.assert_allclose(logit_lens.read(ours, streams[-1]), want.logits[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_cross_attention_too_is_theirs(tmp_path, name):
  theirs, ours, recorder = saved(transformers.AutoModelForSeq2SeqLM, PAIRS[name], tmp_path)
  source, target = drawn(11), [0, *drawn(6, 6)]
  with torch.no_grad():
    want = theirs(
      input_ids=torch.tensor([source]),
      decoder_input_ids=torch.tensor([target]),
      output_attentions=True,
    )
  got = activations.run(ours, recorder, source, target)
  same(got["encoder"].maps(), want.encoder_attentions)
  same(got["decoder"].maps(), want.decoder_attentions)
  same(got["decoder"].maps("cross"), want.cross_attentions)


def test_a_vits_attention_is_theirs(tmp_path):
  config = transformers.ViTConfig(
    image_size=12,
    patch_size=4,
    hidden_size=18,
    num_attention_heads=3,
    num_hidden_layers=2,
    intermediate_size=30,
  )
  theirs, ours, recorder = saved(transformers.AutoModelForImageClassification, config, tmp_path)
  pixels = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)
  with torch.no_grad():
    want = theirs(torch.tensor(pixels), output_attentions=True)
  same(activations.run(ours, recorder, pixels)[""].maps(), want.attentions)
