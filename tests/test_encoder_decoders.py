import json, math
import numpy as np
import pytest
from conftest import FIXTURES
from tinygrad import Tensor, nn
import models
from models import bart, checkpoint, marian, t5
from models.config import Config
from text.generate import Reader, generate, respond
from text.settings import Settings
from transformer import Linear, attention

FAMILIES = {"t5-a": t5, "t5-b": t5, "bart-a": bart, "marian-a": marian}
PLAIN = {"linear": Linear, "attend": attention, "layer_norm": nn.LayerNorm}

def expected(case): return np.load(FIXTURES / case / "expected.npz")

def logits(model, want): return model(Tensor(want["source"]), Tensor(want["target"]), Tensor(want["keep"])).numpy()

@pytest.fixture(scope="module")
def loaded():
  made = {}
  return lambda case: made.setdefault(case, models.load(FIXTURES / case))

@pytest.mark.parametrize("case, parts", [*((case, {}) for case in FAMILIES), ("t5-b", PLAIN), ("bart-a", PLAIN)], ids=str)
def test_logits_are_hugging_faces(loaded, case, parts):
  """Of a batch whose second source is padded."""
  want = expected(case)
  error = np.abs(logits(models.load(FIXTURES / case, **parts) if parts else loaded(case), want) - want["logits"]).max()
  assert error < min(1e-4, 1e-5 * want["logits"].std())

@pytest.mark.parametrize("case", FAMILIES)
def test_texts_are_hugging_faces(loaded, case):
  """Greedy and of beams, of two sources of other lengths, padded there and not here, under all that generation_config.json says."""
  want, settings = expected(case), Settings.read(FIXTURES / case)
  for name, beams in (("beams", settings.num_beams), ("greedy", 1)):
    for source, keep, text in zip(want["source"], want["keep"], want[name][:, 1:].tolist()):
      end = text.index(settings.eos_token_id) if settings.eos_token_id in text else len(text)
      assert respond(loaded(case), source[keep == 1].tolist(), settings._replace(num_beams=beams), key=case) == text[:end]

@pytest.mark.parametrize("case", ["t5-a", "marian-a"])
def test_a_cache_changes_nothing(loaded, case):
  """Nor does reading two targets of one source piece by piece, by a traced step or not, or beams of them that change places."""
  model, want = loaded(case), expected(case)
  source, keep, target = Tensor(want["source"][1:]), Tensor(want["keep"][1:]), want["target"]
  plain, cache = model(source.expand(2, -1), Tensor(target), keep.expand(2, -1)).numpy(), model.cache(2, source, keep, 11)
  def close(got, plain): assert np.abs(got - plain).max() < 1e-5 * plain.std()
  close(model.head(model.hidden(Tensor(target[:, :7]), 0, cache)).numpy(), plain[:, :7])
  close(model.head(model.hidden(Tensor(target[:, 7:]), 7, cache)).numpy(), plain[:, 7:])
  reader = Reader(model, 2, cache=cache)
  for i in range(11): close(reader(target[:, i:i+1]), plain[:, i])
  with pytest.raises(ValueError, match="12 tokens are more than the context of 11"): reader(target[:, :1])
  cache.reorder([1, 0])
  reader.place = 4
  close(reader(target[::-1, 4:5]), plain[::-1, 4])

@pytest.mark.parametrize("case", FAMILIES)
def test_a_target_sees_all_of_its_source_and_nothing_later_of_itself(loaded, case):
  """In one batch: as it is, with another token in two places of the target, and in two of a source of 9 tokens."""
  want = expected(case)
  source, target, keep = (np.repeat(want[name][1:], 6, 0) for name in ("source", "target", "keep"))
  for row, ids, place in ((1, target, 0), (2, target, 6), (3, source, 0), (4, source, 8), (5, source, 13)): ids[row, place] = (ids[row, place] + 1) % 61
  got = loaded(case)(Tensor(source), Tensor(target), Tensor(keep)).numpy()
  moved = (got != got[:1]).any(-1)
  assert moved[1].all() and not moved[2, :6].any() and moved[2, 6:].all()
  assert moved[3].all() and moved[4].all() and not moved[5].any()

def test_a_source_may_have_any_length_where_only_distances_count(loaded):
  long_ = np.tile(expected("t5-a")["source"], (1, 3))
  assert loaded("t5-a").encode(Tensor(long_)).shape == (2, 42, 12)
  with pytest.raises(ValueError, match="42 tokens are more than the 40 places"): loaded("bart-a").encode(Tensor(long_))

@pytest.mark.parametrize("case", ["t5-a", "marian-a"])
def test_narrow_weights_give_nearly_the_same_logits(case):
  want = expected(case)
  model = models.load(FIXTURES / case, "bfloat16")
  assert np.abs(logits(model, want) - want["logits"]).max() < 0.1 * want["logits"].std()
  assert {str(t.dtype) for name, t in nn.state.get_state_dict(model).items() if "bias" in name} == {"dtypes.float"}

def test_greedy_text_needs_no_cache(loaded):
  model, source, settings = loaded("t5-b"), expected("t5-b")["source"], Settings.read(FIXTURES / "t5-b")._replace(num_beams=1)
  ids = respond(model, source[0].tolist(), settings, 11, key="t5-b")
  assert len(ids) == 11 and model(Tensor(source), Tensor([[0, *ids[:-1]]] * 2)).numpy()[0].argmax(-1).tolist() == ids

def test_it_can_be_sampled_too(loaded):
  model, source = loaded("t5-a"), expected("t5-a")["source"][:1]
  texts = list(zip(*generate(Reader(model, 3, "t5-a", model.cache(3, Tensor(source), context=24)), [0], 12, 1.0, seed=1)))
  assert len(set(texts)) == 3

# files

def rewritten(case, folder, change, config=None):
  arrays = change({name: entry.numpy() for name, entry in checkpoint.read(FIXTURES / case).items()})
  folder.mkdir(parents=True)
  checkpoint.write_safetensors(folder / "model.safetensors", arrays)
  (folder / "config.json").write_text(json.dumps(json.loads((FIXTURES / case / "config.json").read_text()) | (config or {})))
  return folder

def same(a, b):
  for (name, x), y in zip(nn.state.get_state_dict(a).items(), nn.state.get_parameters(b)): np.testing.assert_array_equal(x.numpy(), y.numpy(), err_msg=name)

def test_what_real_files_repeat_is_left(tmp_path, loaded):
  for case, change in {
    "t5-a": lambda a: a | {"encoder.embed_tokens.weight": a["shared.weight"], "decoder.embed_tokens.weight": a["shared.weight"], "lm_head.weight": a["shared.weight"],
                           "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": a["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]},
    "bart-a": lambda a: {name.removeprefix("model."): t for name, t in a.items()} | {"encoder.embed_tokens.weight": a["model.shared.weight"], "encoder.version": np.ones(1, np.float32)},
    "marian-a": lambda a: a | {"lm_head.weight": a["model.shared.weight"], "model.decoder.embed_tokens.weight": a["model.shared.weight"],
                               "model.encoder.embed_positions.weight": np.ones((40, 12), np.float32)}}.items():
    same(models.load(rewritten(case, tmp_path / case, change)), loaded(case))

def test_a_file_saved_without_a_head_has_no_bias_of_the_logits(tmp_path):
  model = models.load(rewritten("bart-a", tmp_path / "x", lambda a: {name.removeprefix("model."): t for name, t in a.items() if name != "final_logits_bias"}))
  assert not model.head_bias.numpy().any()

def test_11_has_a_head_of_its_own_and_says_so_in_either_spelling(tmp_path):
  old = {"tie_word_embeddings": False, "scale_decoder_outputs": None}
  for config in (old, {"scale_decoder_outputs": False}):
    folder = rewritten("t5-b", tmp_path / str(len(config)), lambda a: a, {name: value for name, value in config.items()})
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: value for name, value in text.items() if value is not None}))
    np.testing.assert_array_equal(models.load(folder).head.weight.numpy(), checkpoint.read(FIXTURES / "t5-b")["lm_head.weight"].numpy())
  with pytest.raises(ValueError, match="lacks lm_head.weight"):
    models.load(rewritten("t5-b", tmp_path / "y", lambda a: {name: t for name, t in a.items() if name != "lm_head.weight"}))

@pytest.mark.parametrize("case, change, word", [
  ("marian-a", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"), ("bart-a", {"tie_word_embeddings": False}, "tie_word_embeddings"),
  ("bart-a", {"decoder_layers": None}, "decoder_layers"), ("t5-a", {"feed_forward_proj": "gated-mish"}, "mish"), ("t5-a", {"d_kv": 0}, "d_kv"), ("bart-a", {"d_model": 13}, "dim 13")])
def test_what_is_not_built_is_told(case, change, word):
  config = json.loads((FIXTURES / case / "config.json").read_text()) | change
  with pytest.raises(ValueError, match=word): FAMILIES[case].from_config(Config(config))

OPUS = dict(vocab_size=58101, d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=2048,
            decoder_ffn_dim=2048, max_position_embeddings=512, scale_embedding=True, activation_function="swish")
def t5_sizes(dim, heads, hidden, layers): return dict(vocab_size=32128, d_model=dim, d_kv=64, num_heads=heads, d_ff=hidden, num_layers=layers)
def bart_sizes(dim, layers): return OPUS | dict(vocab_size=50265, d_model=dim, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=16, decoder_attention_heads=16,
                                                encoder_ffn_dim=4*dim, decoder_ffn_dim=4*dim, max_position_embeddings=1024, activation_function="gelu")

@pytest.mark.parametrize("family, sizes, count", [
  (t5, t5_sizes(512, 8, 2048, 6), 60_506_624), (t5, t5_sizes(768, 12, 3072, 12), 222_903_552), (t5, t5_sizes(1024, 16, 4096, 24), 737_668_096),
  (bart, bart_sizes(768, 6), 139_420_416), (bart, bart_sizes(1024, 12), 406_291_456), (marian, OPUS, 74_410_496)])
def test_the_published_sizes_have_their_parameter_counts(family, sizes, count):
  """As transformers counts: without the bias of BART's logits, which it has as no parameter, and with Marian's computed positions, which it has as two."""
  with checkpoint.undrawn(): params = nn.state.get_state_dict(family.from_config(Config(sizes)))
  assert sum(math.prod(p.shape) for name, p in params.items() if name != "head_bias") + (2*512*512 if family is marian else 0) == count
