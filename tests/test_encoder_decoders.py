import json
import math

import numpy as np
import pytest
from conftest import FIXTURES, close
from tinygrad import Tensor, dtypes, nn

from models import bart, marian, t5
from tinyformer import checkpoints
from tinyformer.checkpoints import safetensors
from tinyformer.checkpoints.config import Config
from tinyformer.generation import Engine, generate_seq2seq
from tinyformer.generation.generation_config import GenerationConfig
from transformer import Linear, attention

FAMILIES = {"t5-a": t5, "t5-b": t5, "bart-a": bart, "marian-a": marian}
PLAIN = {"linear": Linear, "attention_fn": attention, "layer_norm": nn.LayerNorm}


def expected(case):
  return np.load(FIXTURES / case / "expected.npz")


def logits(model, want):
  return model(Tensor(want["source"]), Tensor(want["target"]), Tensor(want["keep"])).numpy()


@pytest.fixture(scope="module")
def loaded():
  made = {}
  return lambda case: made.setdefault(case, checkpoints.load_module(FIXTURES / case))


@pytest.mark.parametrize(
  "case, parts",
  [*((case, {}) for case in FAMILIES), ("t5-b", PLAIN)],
  ids=["t5", "t5 1.1", "bart", "marian", "plain parts"],
)
def test_logits_are_hugging_faces(loaded, case, parts):
  """Of a batch whose second source is padded."""
  want = expected(case)
  error = np.abs(
    logits(checkpoints.load_module(FIXTURES / case, **parts) if parts else loaded(case), want)
    - want["logits"]
  ).max()
  assert error < min(1e-4, 1e-5 * want["logits"].std())


@pytest.mark.parametrize(
  "case, way",
  [
    ("t5-a", "beams"),
    ("bart-a", "beams"),
    ("marian-a", "beams"),
    *(pytest.param(case, "greedy", marks=pytest.mark.slow) for case in ("t5-b", "bart-a")),
  ],
)
def test_texts_are_hugging_faces(loaded, case, way):
  """Of two sources of other lengths, padded there and not here, under all that generation_config.json says."""
  want, settings = expected(case), GenerationConfig.read(FIXTURES / case)
  for source, attention_mask, text in zip(want["source"], want["keep"], want[way][:, 1:].tolist()):
    end = text.index(settings.eos_token_id) if settings.eos_token_id in text else len(text)
    beams = settings.num_beams if way == "beams" else 1
    assert (
      generate_seq2seq(
        loaded(case),
        source[attention_mask == 1].tolist(),
        settings._replace(num_beams=beams),
        key=case,
      )
      == text[:end]
    )


def test_a_source_that_cannot_be_read_is_refused(loaded):
  with pytest.raises(ValueError, match="no tokens"):
    generate_seq2seq(loaded("t5-a"), [], GenerationConfig(0))
  with pytest.raises(ValueError, match="41 tokens are more than the 40 places"):
    generate_seq2seq(loaded("bart-a"), [5] * 41, GenerationConfig(0))


def test_greedy_text_needs_no_cache(loaded):
  """Each token of one that was written with it is the likeliest without it."""
  want = expected("t5-b")
  got = logits(loaded("t5-b"), dict(want, target=want["greedy"][:, :11]))
  assert got.argmax(-1).tolist() == want["greedy"][:, 1:12].tolist()


def test_a_cache_changes_nothing(loaded):
  """Nor does reading two targets of one source in pieces, by a traced step or not, or that they change places, as beams do."""
  model, want = loaded("t5-a"), dict(expected("t5-a"))
  want["source"], want["keep"] = (np.repeat(want[name][1:], 2, 0) for name in ("source", "keep"))
  plain, target, cache = (
    logits(model, want),
    want["target"],
    model.cache(2, Tensor(want["source"]), Tensor(want["keep"]), 11),
  )
  close(model.head(model.last_hidden_state(Tensor(target[:, :7]), 0, cache)).numpy(), plain[:, :7])
  reader = Engine(model, 2, cache=cache)
  reader.position = 7
  for i in range(7, 11):
    close(reader(target[:, i : i + 1]), plain[:, i])
  with pytest.raises(ValueError, match="12 tokens are more than the context of 11"):
    reader(target[:, :1])
  cache.reorder([1, 0])
  reader.position = 4
  close(reader(target[::-1, 4:5]), plain[::-1, 4])


@pytest.mark.parametrize("case", ["t5-a", "bart-a"])
def test_a_target_sees_all_of_its_source_and_nothing_later_of_itself(loaded, case):
  model, want = loaded(case), expected(case)
  plain = logits(model, want)

  def moved(name, *places):
    """Where the logits move when these tokens, one of each row, are others."""
    ids = want[name].copy()
    for row, position in enumerate(places):
      ids[row, position] = (ids[row, position] + 1) % 61
    return (logits(model, dict(want, **{name: ids})) != plain).any(-1)

  later = moved("target", 0, 6)
  assert later[0].all() and not later[1, :6].any() and later[1, 6:].all()
  assert moved("source", 13, 8).all()
  assert not moved("source", 0, 13)[1].any()  # the second source has 9 tokens


def test_a_source_may_have_any_length_where_only_distances_count(loaded):
  long_ = np.tile(expected("t5-a")["source"], (1, 3))
  assert loaded("t5-a").encode(Tensor(long_)).shape == (2, 42, 12)
  with pytest.raises(ValueError, match="42 tokens are more than the 40 places"):
    loaded("bart-a").encode(Tensor(long_))


def test_narrow_weights_give_nearly_the_same_logits():
  want = expected("t5-a")
  assert (
    np.abs(
      logits(checkpoints.load_module(FIXTURES / "t5-a", "bfloat16"), want) - want["logits"]
    ).max()
    < 0.1 * want["logits"].std()
  )


@pytest.mark.parametrize("case", ["t5-a", "bart-a"])
def test_biases_are_not_narrowed(case):
  kinds = {
    name: t.dtype
    for name, t in nn.state.get_state_dict(checkpoints.load_module(FIXTURES / case, "int8")).items()
  }
  assert {kind for name, kind in kinds.items() if "bias" in name} == {dtypes.float32} and kinds[
    "tokens.weight"
  ] == dtypes.int8


# files


def rewritten(case, folder, change, config=None):
  arrays = change(
    {name: entry.numpy() for name, entry in safetensors.read(FIXTURES / case).items()}
  )
  folder.mkdir(parents=True)
  safetensors.write_safetensors(folder / "model.safetensors", arrays)
  (folder / "config.json").write_text(
    json.dumps(json.loads((FIXTURES / case / "config.json").read_text()) | (config or {}))
  )
  return folder


def same(a, b):
  for (name, x), y in zip(nn.state.get_state_dict(a).items(), nn.state.get_parameters(b)):
    np.testing.assert_array_equal(x.numpy(), y.numpy(), err_msg=name)


def test_what_real_files_repeat_is_left(tmp_path, loaded):
  for case, change in {
    "t5-a": lambda a: (
      a
      | {
        "encoder.embed_tokens.weight": a["shared.weight"],
        "decoder.embed_tokens.weight": a["shared.weight"],
        "lm_head.weight": a["shared.weight"],
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": a[
          "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        ],
      }
    ),
    "bart-a": lambda a: (
      {name.removeprefix("model."): t for name, t in a.items()}
      | {
        "encoder.embed_tokens.weight": a["model.shared.weight"],
        "encoder.version": np.ones(1, np.float32),
      }
    ),
    "marian-a": lambda a: (
      a
      | {
        "lm_head.weight": a["model.shared.weight"],
        "model.decoder.embed_tokens.weight": a["model.shared.weight"],
        "model.encoder.embed_positions.weight": np.ones((40, 12), np.float32),
      }
    ),
  }.items():
    same(checkpoints.load_module(rewritten(case, tmp_path / case, change)), loaded(case))


def test_a_file_saved_without_a_head_has_no_bias_of_the_logits(tmp_path):
  model = checkpoints.load_module(
    rewritten(
      "bart-a",
      tmp_path / "x",
      lambda a: {
        name.removeprefix("model."): t for name, t in a.items() if name != "final_logits_bias"
      },
    )
  )
  assert not model.head_bias.numpy().any()


def test_11_has_a_head_of_its_own_and_says_so_in_either_spelling(tmp_path):
  old = {"tie_word_embeddings": False, "scale_decoder_outputs": None}
  for config in (old, {"scale_decoder_outputs": False}):
    folder = rewritten(
      "t5-b",
      tmp_path / str(len(config)),
      lambda a: a,
      {name: value for name, value in config.items()},
    )
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
      json.dumps({name: value for name, value in text.items() if value is not None})
    )
    np.testing.assert_array_equal(
      checkpoints.load_module(folder).head.weight.numpy(),
      safetensors.read(FIXTURES / "t5-b")["lm_head.weight"].numpy(),
    )
  with pytest.raises(ValueError, match="lacks lm_head.weight"):
    checkpoints.load_module(
      rewritten(
        "t5-b",
        tmp_path / "y",
        lambda a: {name: t for name, t in a.items() if name != "lm_head.weight"},
      )
    )


@pytest.mark.parametrize(
  "case, change, word",
  [
    ("marian-a", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
    ("bart-a", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ("bart-a", {"decoder_layers": None}, "decoder_layers"),
    ("t5-a", {"feed_forward_proj": "gated-mish"}, "mish"),
    ("t5-a", {"d_kv": 0}, "d_kv"),
    ("bart-a", {"d_model": 13}, "dim 13"),
  ],
)
def test_what_is_not_built_is_told(case, change, word):
  config = json.loads((FIXTURES / case / "config.json").read_text()) | change
  with pytest.raises(ValueError, match=word):
    FAMILIES[case].from_config(Config(config))


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


def t5_sizes(dim, heads, ff_dim, layers):
  return dict(
    vocab_size=32128, d_model=dim, d_kv=64, num_heads=heads, d_ff=ff_dim, num_layers=layers
  )


def bart_sizes(dim, layers):
  return OPUS | dict(
    vocab_size=50265,
    d_model=dim,
    encoder_layers=layers,
    decoder_layers=layers,
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
def test_the_published_sizes_have_their_parameter_counts(family, sizes, count):
  """As transformers counts: without the bias of BART's logits, which it has as no parameter, and with Marian's computed positions, which it has as two."""
  with safetensors.skip_init():
    params = nn.state.get_state_dict(family.from_config(Config(sizes)))
  assert (
    sum(math.prod(p.shape) for name, p in params.items() if name != "head_bias")
    + (2 * 512 * 512 if family is marian else 0)
    == count
  )
