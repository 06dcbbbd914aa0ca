"""T5, BART and Marian against transformers, with random parameters.

Needs the extra `reference`; runs in .ci/run.
"""

import numpy as np
import pytest
from conftest import PARTS
from tinygrad import Tensor

from tinyformer import checkpoints
from tinyformer.generation import Engine, generate_seq2seq
from tinyformer.generation.beam_search import beam_search
from tinyformer.generation.generation_config import GenerationConfig
from tinyformer.generation.kv_cache import EncoderDecoderCache

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from make_fixtures import BART, T5, pair  # noqa: E402

pytestmark = pytest.mark.slow
V = BART["vocab_size"]
BART_128 = BART | dict(max_position_embeddings=128)
DEFAULT_BUCKETS = dict(relative_attention_num_buckets=32, relative_attention_max_distance=128)
CONFIGS = {
  "t5": lambda: transformers.T5Config(**T5),
  "t5 1.1": lambda: transformers.T5Config(
    **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
  ),
  "t5 1.1, tied head": lambda: transformers.T5Config(
    **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
  ),
  "t5 with gated silu": lambda: transformers.T5Config(
    **T5 | DEFAULT_BUCKETS | dict(feed_forward_proj="gated-silu")
  ),
  "mt5": lambda: transformers.MT5Config(**T5),
  "bart": lambda: transformers.BartConfig(**BART_128),
  "bart, scaled": lambda: transformers.BartConfig(
    **BART_128 | dict(scale_embedding=True, activation_function="relu")
  ),
  "marian": lambda: transformers.MarianConfig(
    **BART_128 | dict(scale_embedding=True, activation_function="swish")
  ),
  "marian, unscaled": lambda: transformers.MarianConfig(
    **BART_128 | dict(activation_function="gelu", encoder_attention_heads=6)
  ),
}


def reference_model(name, seed=0, settings=None):
  """Return a random model of transformers.

  settings: keys of generation_config.json.
  """
  model = pair(CONFIGS[name](), settings or {}, seed)
  if name == "mt5":
    # Published checkpoints of mT5 have a head that is not tied.
    rng = torch.Generator().manual_seed(seed)
    head = torch.randn(model.lm_head.weight.shape, generator=rng) * 0.25
    model.lm_head.weight = torch.nn.Parameter(head)
  if name == "t5 1.1, tied head":
    model.lm_head.weight = model.shared.weight
  return model


def random_ids(*shape, seed=5):
  return np.random.default_rng(seed).integers(3, V, shape)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_hugging_face(tmp_path, name, seed):
  reference = reference_model(name, seed)
  reference.save_pretrained(tmp_path)
  source = random_ids(3, 37)
  target = random_ids(3, 29, seed=6)
  attention_mask = np.ones((3, 37), dtype=np.int64)
  attention_mask[1, 20:] = attention_mask[2, 1:] = 0
  with torch.no_grad():
    expected = reference(
      input_ids=torch.tensor(source),
      attention_mask=torch.tensor(attention_mask),
      decoder_input_ids=torch.tensor(target),
    ).logits.numpy()
  for parts in PARTS.values():
    model = checkpoints.load_module(tmp_path, parts=parts)
    actual = model(Tensor(source), Tensor(target), Tensor(attention_mask)).numpy()
    error = np.abs(actual - expected).max()
    print(name, seed, error / expected.std())
    assert error < min(1e-4, 2e-5 * expected.std())


SETTINGS = [
  dict(num_beams=1),
  dict(num_beams=4),
  dict(num_beams=4, early_stopping=True),
  dict(num_beams=3, early_stopping="never", length_penalty=2.0),
  dict(num_beams=2, early_stopping="never", length_penalty=-1.0),
  dict(num_beams=5, length_penalty=0.0),
  dict(num_beams=4, length_penalty=2.0, min_length=20),
  dict(num_beams=1, no_repeat_ngram_size=3),
  dict(num_beams=4, no_repeat_ngram_size=2, early_stopping=True),
  dict(num_beams=4, no_repeat_ngram_size=1),
  dict(num_beams=3, forced_bos_token_id=7, forced_eos_token_id=2),
  dict(
    num_beams=1, forced_bos_token_id=7, forced_eos_token_id=2, no_repeat_ngram_size=2, min_length=12
  ),
  dict(
    num_beams=4,
    bad_words_ids=[[0], [1], [5, 6], [59], [24, 24], [28, 28], [2, 9, 9]],
    no_repeat_ngram_size=3,
  ),
  dict(
    num_beams=4,
    bad_words_ids=[[0], [1], *([i] for i in range(30, 50))],
    renormalize_logits=True,
    no_repeat_ngram_size=2,
    early_stopping=True,
  ),
]


@pytest.fixture(scope="module")
def step_cache(tmp_path_factory):
  """Cache compiled steps for all tests of this module: the models differ in weights only."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield


def join_settings(settings):
  """Return the name of a test case."""
  return " ".join(f"{name}={value}" for name, value in settings.items())[:60]


@pytest.mark.usefixtures("step_cache")
@pytest.mark.parametrize("settings", SETTINGS, ids=join_settings)
@pytest.mark.parametrize("name", ["t5", "t5 1.1", "bart", "marian"])
def test_generated_texts_equal_hugging_face(tmp_path, name, settings):
  """Each text has up to 50 tokens. Both implementations stop at the end-of-sequence token."""
  for seed in range(3):
    reference = reference_model(name, seed, settings | {"max_length": 51})
    reference.save_pretrained(tmp_path)
    model = checkpoints.load_module(tmp_path)
    config = GenerationConfig.read(tmp_path)
    for length in (5, 21):
      source = random_ids(1, length, seed=seed).tolist()
      # The first token is decoder_start_token_id, which may equal eos_token_id.
      [text] = reference.generate(torch.tensor(source)).tolist()
      end = text.index(config.eos_token_id, 1) if config.eos_token_id in text[1:] else len(text)
      actual = generate_seq2seq(model, source[0], config, key=name)
      assert actual == text[1:end], (seed, length)


@pytest.mark.parametrize("name", ["t5", "t5 1.1", "bart", "marian"])
def test_all_beams_and_scores_equal_hugging_face(tmp_path, name):
  reference = reference_model(name, 3, dict(max_length=24))
  reference.save_pretrained(tmp_path)
  source = random_ids(1, 9)
  output = reference.generate(
    torch.tensor(source),
    num_beams=4,
    num_return_sequences=4,
    length_penalty=1.5,
    return_dict_in_generate=True,
    output_scores=True,
  )
  model = checkpoints.load_module(tmp_path)
  config = GenerationConfig.read(tmp_path)
  beams = beam_search(
    Engine(model, 4, cache=EncoderDecoderCache.for_source(model, Tensor(source), None, 4, 24)),
    [config.decoder_start_token_id],
    23,
    lambda n: n**1.5,
    config.eos_token_id,
    config.logits_processors(24),
  )
  sequences = output.sequences[:, 1:].tolist()
  scores = output.sequences_scores.tolist()
  for (ids, score), sequence, expected_score in zip(beams, sequences, scores, strict=True):
    assert ids == sequence[: len(ids)]
    assert score == pytest.approx(expected_score, abs=1e-4)
