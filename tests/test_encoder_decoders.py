"""T5, BART and Marian: logits and texts of transformers, caching, masks, and checkpoints."""

import json
import math

import numpy as np
import pytest
from conftest import FIXTURES, all_parts, close, normal, uninitialized
from tinygrad import Tensor, dtypes, nn

from models import bart, marian, t5
from models.hf_config import HFConfig
from tinyformer import checkpoints
from tinyformer.checkpoints import safetensors
from tinyformer.generation import Engine, generate_seq2seq
from tinyformer.generation.engine import last_hidden_state
from tinyformer.generation.generation_config import GenerationConfig
from tinyformer.generation.kv_cache import EncoderDecoderCache

FAMILIES = {"t5-a": t5, "t5-b": t5, "bart-a": bart, "marian-a": marian}
CLASSES = {t5: t5.T5, bart: bart.Bart, marian: marian.Marian}


def load_expected(case):
  """Return the inputs of a fixture and what transformers computed for them."""
  return np.load(FIXTURES / case / "expected.npz")


def logits(model, arrays):
  source, target, attention_mask = (Tensor(arrays[name]) for name in ("source", "target", "keep"))
  return model(source, target, attention_mask).numpy()


@pytest.fixture(scope="module")
def loaded():
  """Return a function that loads each fixture once."""
  models = {}
  return lambda case: models.setdefault(case, checkpoints.load_module(FIXTURES / case))


@all_parts()
@pytest.mark.parametrize("case", FAMILIES)
def test_logits_equal_hugging_face(case, parts):
  """The second source of the batch is padded."""
  expected = load_expected(case)
  model = checkpoints.load_module(FIXTURES / case, parts=parts)
  error = np.abs(logits(model, expected) - expected["logits"]).max()
  assert error < min(1e-4, 2e-5 * expected["logits"].std())


@pytest.mark.parametrize(
  "case, method",
  [
    ("t5-a", "beams"),
    ("bart-a", "beams"),
    ("marian-a", "beams"),
    *(pytest.param(case, "greedy", marks=pytest.mark.slow) for case in ("t5-b", "bart-a")),
  ],
)
def test_generated_texts_equal_hugging_face(loaded, case, method):
  """All settings of generation_config.json apply. Only transformers pads the shorter source."""
  expected = load_expected(case)
  settings = GenerationConfig.read(FIXTURES / case)
  if method == "greedy":
    settings = settings._replace(num_beams=1)
  texts = expected[method][:, 1:].tolist()
  for source, attention_mask, text in zip(expected["source"], expected["keep"], texts, strict=True):
    end = text.index(settings.eos_token_id) if settings.eos_token_id in text else len(text)
    source_ids = source[attention_mask == 1].tolist()
    assert generate_seq2seq(loaded(case), source_ids, settings, key=case) == text[:end]


def test_an_empty_or_too_long_source_raises_an_error(loaded):
  with pytest.raises(ValueError, match="no tokens"):
    generate_seq2seq(loaded("t5-a"), [], GenerationConfig(0))
  with pytest.raises(ValueError, match="41 tokens are more than the context of 40"):
    generate_seq2seq(loaded("bart-a"), [5] * 41, GenerationConfig(0))


def test_cached_greedy_tokens_have_the_highest_uncached_logits(loaded):
  expected = load_expected("t5-b")
  inputs = dict(expected, target=expected["greedy"][:, :11])
  actual = logits(loaded("t5-b"), inputs)
  assert actual.argmax(-1).tolist() == expected["greedy"][:, 1:12].tolist()


def test_cached_logits_equal_uncached_logits(loaded):
  """Also in chunks, in compiled steps, and after the targets are reordered as in beam search."""
  model = loaded("t5-a")
  inputs = dict(load_expected("t5-a"))
  for name in ("source", "keep"):
    inputs[name] = np.repeat(inputs[name][1:], 2, 0)
  expected = logits(model, inputs)
  target = inputs["target"]
  source, attention_mask = Tensor(inputs["source"]), Tensor(inputs["keep"])
  cache = EncoderDecoderCache.for_source(model, source, attention_mask, context=11)
  x = last_hidden_state(model, Tensor(target[:, :7]), cache)
  close(model.head(x).numpy(), expected[:, :7])

  engine = Engine(model, 2, cache=cache)
  engine.position = 7
  for i in range(7, 11):
    close(engine(target[:, i : i + 1]), expected[:, i])
  with pytest.raises(ValueError, match="12 tokens are more than the context of 11"):
    engine(target[:, :1])

  cache.reorder([1, 0])
  engine.position = 4
  close(engine(target[::-1, 4:5]), expected[::-1, 4])


@pytest.mark.parametrize("case", ["t5-a", "bart-a"])
def test_a_target_token_attends_to_the_whole_source_and_to_no_later_target_token(loaded, case):
  model = loaded(case)
  inputs = load_expected(case)
  expected = logits(model, inputs)

  def changes(name, *positions):
    """Return which logits (B, T) change with the tokens at these positions, one per sequence."""
    ids = inputs[name].copy()
    for row, position in enumerate(positions):
      ids[row, position] = (ids[row, position] + 1) % 61
    return (logits(model, dict(inputs, **{name: ids})) != expected).any(-1)

  target_changes = changes("target", 0, 6)
  assert target_changes[0].all()
  assert not target_changes[1, :6].any() and target_changes[1, 6:].all()
  assert changes("source", 13, 8).all()
  # The second source has 9 tokens, so its position 13 is padding.
  assert not changes("source", 0, 13)[1].any()


def test_only_learned_positions_limit_the_length_of_a_source(loaded):
  long_source = np.tile(load_expected("t5-a")["source"], (1, 3))
  assert loaded("t5-a").encode(Tensor(long_source)).shape == (2, 42, 12)
  with pytest.raises(ValueError, match="42 tokens are more than the context of 40"):
    loaded("bart-a").encode(Tensor(long_source))


def test_logits_of_bfloat16_weights_are_close():
  expected = load_expected("t5-a")
  actual = logits(checkpoints.load_module(FIXTURES / "t5-a", "bfloat16"), expected)
  error = np.abs(actual - expected["logits"]).max()
  assert error < 0.1 * expected["logits"].std()


@pytest.mark.parametrize("case", ["t5-a", "bart-a"])
def test_int8_models_have_float32_biases(case):
  model = checkpoints.load_module(FIXTURES / case, "int8")
  dtype_of = {name: t.dtype for name, t in nn.state.get_state_dict(model).items()}
  assert {dtype for name, dtype in dtype_of.items() if "bias" in name} == {dtypes.float32}
  assert dtype_of["tokens.weight"] == dtypes.int8


# checkpoints


def modified_checkpoint(case, folder, change=lambda arrays: arrays, config=None):
  """Copy a fixture to `folder` with its tensors and config.json changed, and return the folder.

  config: keys to change; None as a value removes the key.
  """
  arrays = {name: info.numpy() for name, info in safetensors.read(FIXTURES / case).items()}
  folder.mkdir(parents=True)
  safetensors.write_safetensors(folder / "model.safetensors", change(arrays))
  values = json.loads((FIXTURES / case / "config.json").read_text()) | (config or {})
  if config:
    values = {name: value for name, value in values.items() if value is not None}
  (folder / "config.json").write_text(json.dumps(values))
  return folder


def assert_equal_parameters(a, b):
  params = nn.state.get_state_dict(a).items()
  for (name, x), y in zip(params, nn.state.get_parameters(b), strict=True):
    np.testing.assert_array_equal(x.numpy(), y.numpy(), err_msg=name)


def add_copies_to_t5(arrays):
  embeddings = arrays["shared.weight"]
  bias = arrays["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
  return arrays | {
    "encoder.embed_tokens.weight": embeddings,
    "decoder.embed_tokens.weight": embeddings,
    "lm_head.weight": embeddings,
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": bias,
  }


def to_facebook_layout(arrays):
  return {name.removeprefix("model."): a for name, a in arrays.items()} | {
    "encoder.embed_tokens.weight": arrays["model.shared.weight"],
    "encoder.version": np.ones(1, np.float32),
  }


def add_copies_to_marian(arrays):
  return arrays | {
    "lm_head.weight": arrays["model.shared.weight"],
    "model.decoder.embed_tokens.weight": arrays["model.shared.weight"],
    "model.encoder.embed_positions.weight": np.ones((40, 12), np.float32),
  }


def test_redundant_tensors_of_published_checkpoints_are_ignored(tmp_path, loaded):
  changes = {
    "t5-a": add_copies_to_t5,
    "bart-a": to_facebook_layout,
    "marian-a": add_copies_to_marian,
  }
  for case, change in changes.items():
    folder = modified_checkpoint(case, tmp_path / case, change)
    assert_equal_parameters(checkpoints.load_module(folder), loaded(case))


def test_a_checkpoint_saved_without_a_head_has_zero_bias_of_the_logits(tmp_path):
  def without_head(arrays):
    return {n.removeprefix("model."): a for n, a in arrays.items() if n != "final_logits_bias"}

  model = checkpoints.load_module(modified_checkpoint("bart-a", tmp_path / "x", without_head))
  assert not model.head_bias.numpy().any()


@all_parts()
def test_logits_of_a_classifier_equal_hugging_face(parts):
  """Each pair of texts has two eos tokens, and two of the pairs are padded."""
  model = checkpoints.load_module(FIXTURES / "bart_classifier-a", parts=parts)
  expected = load_expected("bart_classifier-a")
  inputs = (Tensor(expected[name]) for name in ("ids", "keep", "segments"))
  assert (expected["ids"] == model.config.eos_token_id).sum(1).tolist() == [2, 2, 2]
  assert model.labels == ["contradiction", "neutral", "entailment", "other"]
  close(model(*inputs).numpy(), expected["logits"], 5e-5)


@pytest.mark.parametrize("case", ["bart-a", "bart_classifier-a"])
def test_a_checkpoint_with_other_tensors_than_the_head_of_its_config_is_refused(case, tmp_path):
  architectures = ["BartForConditionalGeneration", "BartForSequenceClassification"]
  other = {"architectures": [architectures[case == "bart-a"]]}
  folder = modified_checkpoint(case, tmp_path / "x", lambda arrays: arrays, other)
  with pytest.raises(ValueError, match=r"classification_head\.dense"):
    checkpoints.load_module(folder)


def test_the_head_of_t5_1_1_is_not_tied_with_old_or_new_config_keys(tmp_path):
  old_keys = {"tie_word_embeddings": False, "scale_decoder_outputs": None}
  new_keys = {"scale_decoder_outputs": False}
  for name, config in (("old", old_keys), ("new", new_keys)):
    model = checkpoints.load_module(modified_checkpoint("t5-b", tmp_path / name, config=config))
    np.testing.assert_array_equal(
      model.head.weight.numpy(),
      safetensors.read(FIXTURES / "t5-b")["lm_head.weight"].numpy(),
    )


def test_a_scaled_head_of_t5_that_is_no_copy_of_the_embeddings_is_refused(tmp_path):
  """transformers would use the head's own matrix."""

  def other_head(arrays):
    return arrays | {"lm_head.weight": arrays["shared.weight"] + 1}

  folder = modified_checkpoint("t5-a", tmp_path / "x", other_head)
  with pytest.raises(ValueError, match=r"lm_head\.weight differs from shared\.weight"):
    checkpoints.load_module(folder)


def test_the_head_of_a_t5_1_1_without_a_head_tensor_is_tied_and_not_scaled(tmp_path):
  """transformers 5.24 saves a T5 1.1 with a tied head in this way."""

  def without_head(arrays):
    return {name: a for name, a in arrays.items() if name != "lm_head.weight"}

  old_keys = {"tie_word_embeddings": False, "scale_decoder_outputs": None}
  new_keys = {"tie_word_embeddings": True, "scale_decoder_outputs": False}
  x = Tensor(normal(2, 5, 12))
  for name, config in (("old", old_keys), ("new", new_keys)):
    folder = modified_checkpoint("t5-b", tmp_path / name, without_head, config)
    model = checkpoints.load_module(folder)
    assert not any(n.startswith("head") for n in nn.state.get_state_dict(model))
    close(model.head(x).numpy(), (x @ model.tokens.weight.T).numpy())


@pytest.mark.parametrize(
  "case, change, word",
  [
    ("marian-a", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
    ("bart-a", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ("bart-a", {"decoder_layers": None}, "decoder_layers"),
    ("t5-a", {"feed_forward_proj": "gated-mish"}, "mish"),
    ("t5-a", {"d_kv": 0}, "d_kv"),
    ("bart-a", {"d_model": 13}, "encoder_attention_heads must divide 13"),
  ],
)
def test_an_unsupported_setting_raises_an_error_that_names_it(case, change, word):
  config = json.loads((FIXTURES / case / "config.json").read_text()) | change
  with pytest.raises(ValueError, match=word):
    CLASSES[FAMILIES[case]](FAMILIES[case].from_hf(HFConfig(config)))


OPUS = dict(
  vocab_size=58101,
  d_model=512,
  encoder_layers=6,
  decoder_layers=6,
  encoder_attention_heads=8,
  decoder_attention_heads=8,
  encoder_ffn_dim=2048,
  decoder_ffn_dim=2048,
  max_position_embeddings=512,
  scale_embedding=True,
  activation_function="swish",
)


def t5_sizes(dim, heads, ff_dim, num_layers):
  return dict(
    vocab_size=32128, d_model=dim, d_kv=64, num_heads=heads, d_ff=ff_dim, num_layers=num_layers
  )


def bart_sizes(dim, num_layers):
  return OPUS | dict(
    vocab_size=50265,
    d_model=dim,
    encoder_layers=num_layers,
    decoder_layers=num_layers,
    encoder_attention_heads=16,
    decoder_attention_heads=16,
    encoder_ffn_dim=4 * dim,
    decoder_ffn_dim=4 * dim,
    max_position_embeddings=1024,
    activation_function="gelu",
  )


@pytest.mark.parametrize(
  "family, sizes, count",
  [
    (t5, t5_sizes(512, 8, 2048, 6), 60_506_624),
    (t5, t5_sizes(768, 12, 3072, 12), 222_903_552),
    (t5, t5_sizes(1024, 16, 4096, 24), 737_668_096),
    (bart, bart_sizes(768, 6), 139_420_416),
    (bart, bart_sizes(1024, 12), 406_291_456),
    (marian, OPUS, 74_410_496),
  ],
)
def test_published_sizes_have_their_parameter_counts(family, sizes, count):
  """The counts are those of transformers.

  There, the bias of BART's logits is not a parameter, and Marian's sinusoids are two parameters.
  """
  model = uninitialized(CLASSES[family], family.from_hf(HFConfig(sizes)))
  params = nn.state.get_state_dict(model)
  actual = sum(math.prod(p.shape) for name, p in params.items() if name != "head_bias")
  sinusoids = 2 * 512 * 512 if family is marian else 0
  assert actual + sinusoids == count
