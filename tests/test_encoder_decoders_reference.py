"""T5, BART and Marian against transformers itself, every parameter random. Needs the extra `reference`; runs in .ci/run."""

import numpy as np
import pytest
from tinygrad import Tensor

from tinyformer import checkpoints
from tinyformer.generation import Engine, beam_search, generate_seq2seq
from tinyformer.generation.generation_config import GenerationConfig
from transformer import Linear, attention

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from make_fixtures import BART, T5, pair

pytestmark = pytest.mark.slow
PLAIN = {"linear": Linear, "attention_fn": attention}
V = BART["vocab_size"]
CONFIGS = {
  "t5": lambda: transformers.T5Config(**T5),
  "t5 1.1": lambda: transformers.T5Config(
    **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
  ),
  "t5 with gated silu": lambda: transformers.T5Config(
    **T5
    | dict(
      feed_forward_proj="gated-silu",
      relative_attention_num_buckets=32,
      relative_attention_max_distance=128,
    )
  ),
  "mt5": lambda: transformers.MT5Config(**T5),
  "bart": lambda: transformers.BartConfig(**BART | dict(max_position_embeddings=128)),
  "bart, scaled": lambda: transformers.BartConfig(
    **BART | dict(scale_embedding=True, activation_function="relu", max_position_embeddings=128)
  ),
  "marian": lambda: transformers.MarianConfig(
    **BART | dict(scale_embedding=True, activation_function="swish", max_position_embeddings=128)
  ),
  "marian, unscaled": lambda: transformers.MarianConfig(
    **BART
    | dict(activation_function="gelu", encoder_attention_heads=6, max_position_embeddings=128)
  ),
}


def theirs(name, seed=0, words=None):
  config = CONFIGS[name]()
  model = pair(config, words or {}, seed)
  if name == "mt5":  # as its files are: a head of its own
    model.lm_head.weight = torch.nn.Parameter(
      torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.25
    )
  return model


def drawn(*shape, seed=5):
  return np.random.default_rng(seed).integers(3, V, shape)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_theirs(tmp_path, name, seed):
  model, source, target, attention_mask = (
    theirs(name, seed),
    drawn(3, 37),
    drawn(3, 29, seed=6),
    np.ones((3, 37), dtype=np.int64),
  )
  attention_mask[1, 20:] = attention_mask[2, 1:] = 0
  model.save_pretrained(tmp_path)
  with torch.no_grad():
    want = model(
      input_ids=torch.tensor(source),
      attention_mask=torch.tensor(attention_mask),
      decoder_input_ids=torch.tensor(target),
    ).logits.numpy()
  for parts in ({}, PLAIN):
    error = np.abs(
      checkpoints.load_module(tmp_path, **parts)(
        Tensor(source), Tensor(target), Tensor(attention_mask)
      ).numpy()
      - want
    ).max()
    print(name, seed, error / want.std())
    assert error < min(1e-4, 1e-5 * want.std())


WORDS = [
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
def steps(tmp_path_factory):
  """Traced steps are kept for the tests after this one: they differ in weights, not in shapes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize(
  "words",
  WORDS,
  ids=lambda words: " ".join(f"{name}={value}" for name, value in words.items())[:60],
)
@pytest.mark.parametrize("name", ["t5", "t5 1.1", "bart", "marian"])
def test_texts_are_theirs(tmp_path, name, words):
  """Fifty tokens of each, or as many as come before the end."""
  for seed in range(3):
    model = theirs(name, seed, words | {"max_length": 51})
    model.save_pretrained(tmp_path)
    ours, settings = checkpoints.load_module(tmp_path), GenerationConfig.read(tmp_path)
    for length in (5, 21):
      source = drawn(1, length, seed=seed).tolist()
      [want] = model.generate(torch.tensor(source)).tolist()
      end = want.index(settings.eos_token_id, 1) if settings.eos_token_id in want[1:] else len(want)
      assert generate_seq2seq(ours, source[0], settings, key=name) == want[1:end], (seed, length)


@pytest.mark.parametrize("name", ["t5", "t5 1.1", "bart", "marian"])
def test_all_beams_and_their_scores_are_theirs(tmp_path, name):
  model = theirs(name, 3, dict(max_length=24))
  model.save_pretrained(tmp_path)
  ours, source = checkpoints.load_module(tmp_path), drawn(1, 9)
  out = model.generate(
    torch.tensor(source),
    num_beams=4,
    num_return_sequences=4,
    length_penalty=1.5,
    return_dict_in_generate=True,
    output_scores=True,
  )
  settings = GenerationConfig.read(tmp_path)
  reader = Engine(ours, 4, cache=ours.cache(4, Tensor(source), context=24))
  found = beam_search(
    reader,
    [settings.decoder_start_token_id],
    23,
    lambda n: n**1.5,
    settings.eos_token_id,
    settings.logits_processors(24),
  )
  for (ids, score), sequence, their_score in zip(
    found, out.sequences[:, 1:].tolist(), out.sequences_scores.tolist()
  ):
    assert ids == sequence[: len(ids)] and score == pytest.approx(their_score, abs=1e-4)
