"""Against transformers itself, every parameter random. Needs the extra `reference`; runs in .ci/run."""

import random
import unicodedata

import numpy as np
import pytest
from conftest import ROOT, close, randomise, shared_data
from tinygrad import Tensor

from layers.positions import alibi
from models import gpt2
from tinyformer import checkpoints
from tinyformer.generation.engine import Engine, beam_search, generate
from tinyformer.kernels.parts import CPU_KERNELS
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
from tinyformer.tokenization.wordpiece import WordPiece
from transformer import Linear, attention

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import make_fixtures

pytestmark = pytest.mark.slow
PLAIN = {"linear": Linear, "attention_fn": attention}
SHAPES = list(make_fixtures.SHAPES.values())


def theirs(sizes, seed=0):
  model = transformers.GPT2LMHeadModel(
    transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
  ).eval()
  make_fixtures.randomise(model, seed)
  return model


def their_logits(model, ids):
  with torch.no_grad():
    return model(torch.tensor(ids)).logits.float().numpy()


def ids_for(sizes, length=11):
  return np.random.default_rng(5).integers(0, sizes["vocab_size"], (3, length))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", SHAPES)
def test_logits_are_theirs(tmp_path, sizes, seed):
  model, ids = theirs(sizes, seed), ids_for(sizes)
  model.save_pretrained(tmp_path)
  close(gpt2.load(tmp_path)(Tensor(ids)).numpy(), their_logits(model, ids))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("sizes", SHAPES)
def test_sixteen_bit_files_are_read_as_theirs(tmp_path, sizes, dtype):
  model, ids = theirs(sizes).to(getattr(torch, dtype)), ids_for(sizes)
  model.save_pretrained(tmp_path)
  close(gpt2.load(tmp_path)(Tensor(ids)).numpy(), their_logits(model.float(), ids))


@pytest.mark.parametrize("sizes", SHAPES)
def test_shards_are_read_as_theirs(tmp_path, sizes):
  model, ids = theirs(sizes), ids_for(sizes)
  model.save_pretrained(tmp_path, max_shard_size="20KB")
  assert (tmp_path / "model.safetensors.index.json").exists() and not (
    tmp_path / "model.safetensors"
  ).exists()
  close(gpt2.load(tmp_path)(Tensor(ids)).numpy(), their_logits(model, ids))


@pytest.mark.parametrize(
  "activation", ["gelu_new", "gelu", "relu", "silu", "tanh", "gelu_pytorch_tanh"]
)
def test_activations_are_theirs(tmp_path, activation):
  sizes = SHAPES[0] | {"activation_function": activation}
  model, ids = theirs(sizes), ids_for(sizes)
  model.save_pretrained(tmp_path)
  close(gpt2.load(tmp_path)(Tensor(ids)).numpy(), their_logits(model, ids))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_they_load_what_we_save(tmp_path, dtype):
  model = randomise(gpt2.GPT2(61, 19, 12, 3, 2, ff_dim=20, eps=1e-3))
  gpt2.save(model, tmp_path, dtype)
  ids = ids_for({"vocab_size": 61})
  close(
    gpt2.load(tmp_path)(Tensor(ids)).numpy(),
    their_logits(
      transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval(), ids
    ),
  )


def test_the_real_folder_has_their_logits():
  folder, ids = shared_data("checkpoints/tiny-llm-cicd-gpt2-dc0a59b"), [[464, 3290, 373, 1043]]
  close(
    gpt2.load(folder)(Tensor(ids)).numpy(),
    their_logits(transformers.GPT2LMHeadModel.from_pretrained(folder).eval(), ids),
  )


@pytest.mark.parametrize("sizes", SHAPES)
def test_greedy_text_is_theirs(tmp_path, sizes):
  model, room = theirs(sizes), sizes["n_positions"] - 3
  model.save_pretrained(tmp_path)
  want = model.generate(
    torch.tensor([[1, 2, 3]]), max_new_tokens=room, do_sample=False, pad_token_id=0
  )[0, 3:].tolist()
  assert [
    t for [t] in generate(Engine(gpt2.load(tmp_path)), [1, 2, 3], room, temperature=0)
  ] == want


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("end", [None, 7, 30])
def test_beams_are_theirs(tmp_path, end, power):
  sizes = SHAPES[0]
  model = theirs(sizes)
  model.save_pretrained(tmp_path)
  out = model.generate(
    torch.tensor([[1, 2, 3]]),
    max_new_tokens=12,
    num_beams=4,
    num_return_sequences=4,
    do_sample=False,
    eos_token_id=end,
    pad_token_id=0,
    length_penalty=power,
    return_dict_in_generate=True,
    output_scores=True,
  )
  ours = beam_search(
    Engine(gpt2.load(tmp_path), 4), [1, 2, 3], 12, lambda n: float(n) ** power, end
  )
  for (ids, score), sequence, their_score in zip(
    ours, out.sequences[:, 3:].tolist(), out.sequences_scores.tolist()
  ):
    assert (
      ids == sequence[: len(ids)]
      and not any(sequence[len(ids) :])
      and score == pytest.approx(their_score, abs=1e-4)
    )


def test_the_shipped_model_is_theirs_too():
  folder = ROOT / "weights" / "tiny"
  tokenizer, theirs_ = (
    BytePairEncoding.load(folder),
    transformers.GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")),
  )
  text = "Once upon a time, there was a ship on its way to Mars — 'What?' said the captain."
  assert tokenizer.encode(text) == theirs_(text)["input_ids"]
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
  ids = [tokenizer.encode(text)]
  close(
    gpt2.load(folder)(Tensor(ids)).numpy(), their_logits(model, ids), 2e-5
  )  # theirs in float32 is off from this by 1.1e-5 of the spread


ROPES = {
  "plain": {},
  "llama3": {
    "rope_parameters": {
      "rope_type": "llama3",
      "rope_theta": 5e5,
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 16,
    }
  },
  "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
}


@pytest.mark.parametrize("parts", [PLAIN, CPU_KERNELS], ids=["plain parts", "fast parts"])
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize(
  "shape",
  [
    dict(num_key_value_heads=2),
    dict(num_key_value_heads=4, head_dim=6, tie_word_embeddings=True),
    dict(num_key_value_heads=1, rms_norm_eps=1e-3),
  ],
)
def test_llamas_logits_are_theirs(tmp_path, shape, rope, parts):
  config = transformers.LlamaConfig(
    vocab_size=61,
    hidden_size=16,
    num_attention_heads=4,
    num_hidden_layers=2,
    intermediate_size=24,
    max_position_embeddings=64,
    bos_token_id=None,
    eos_token_id=None,
    **shape,
    **ROPES[rope],
  )
  model = transformers.LlamaForCausalLM(config).eval()
  make_fixtures.randomise(model, 0)
  model.save_pretrained(tmp_path)
  ids = ids_for({"vocab_size": 61}, 40)
  close(
    checkpoints.load_module(tmp_path, **parts)(Tensor(ids)).numpy(), their_logits(model, ids), 5e-5
  )  # the first norm divides by 0.02


@pytest.mark.parametrize("window", [3, 16, None])
def test_mistrals_logits_are_theirs(tmp_path, window):
  config = transformers.MistralConfig(
    vocab_size=61,
    hidden_size=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
    intermediate_size=24,
    head_dim=4,
    max_position_embeddings=64,
    sliding_window=window,
    bos_token_id=None,
    eos_token_id=None,
  )
  model = transformers.MistralForCausalLM(config).eval()
  make_fixtures.randomise(model, 1)
  model.save_pretrained(tmp_path)
  ids = ids_for({"vocab_size": 61}, 40)
  close(checkpoints.load_module(tmp_path)(Tensor(ids)).numpy(), their_logits(model, ids), 5e-5)


DECODER = dict(
  vocab_size=61,
  hidden_size=16,
  num_attention_heads=4,
  num_key_value_heads=2,
  num_hidden_layers=2,
  intermediate_size=24,
  max_position_embeddings=64,
  bos_token_id=None,
  eos_token_id=None,
)
SMALL = dict(
  vocab_size=61,
  n_positions=64,
  n_embd=16,
  n_head=4,
  n_layer=2,
  bos_token_id=None,
  eos_token_id=None,
)
DECODERS = {
  "gpt2": transformers.GPT2Config(**SMALL),
  "gpt": transformers.OpenAIGPTConfig(**SMALL),
  "llama": transformers.LlamaConfig(**DECODER),
  "mistral": transformers.MistralConfig(**DECODER, head_dim=6, sliding_window=5),
  "mixtral": transformers.MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2),
  "one of eight": transformers.MixtralConfig(
    **DECODER, num_local_experts=8, num_experts_per_tok=1, sliding_window=9
  ),
}


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request, tmp_path_factory):
  model, folder = (
    transformers.AutoModelForCausalLM.from_config(DECODERS[request.param]).eval(),
    tmp_path_factory.mktemp("decoder"),
  )
  make_fixtures.randomise(model, 2)
  model.save_pretrained(folder)
  return folder, model


@pytest.mark.parametrize("parts", [PLAIN, CPU_KERNELS], ids=["plain parts", "fast parts"])
def test_decoders_logits_are_theirs_padded_too(decoder, parts):
  folder, model = decoder
  ids = ids_for({"vocab_size": 61}, 40)
  ours = checkpoints.load_module(folder, **parts)
  close(ours(Tensor(ids)).numpy(), their_logits(model, ids), 5e-5)
  attention_mask = np.ones(ids.shape, bool)
  attention_mask[0, :9] = attention_mask[2, :1] = False
  with torch.no_grad():
    want = model(
      torch.tensor(ids),
      attention_mask=torch.tensor(attention_mask.astype(int)),
      position_ids=torch.tensor((attention_mask.cumsum(1) - 1).clip(0)),
    ).logits.numpy()
  close(
    ours(Tensor(ids), attention_mask=Tensor(attention_mask)).numpy()[attention_mask],
    want[attention_mask],
    5e-5,
  )


@pytest.mark.parametrize("heads", [4, 12])
def test_alibi_is_blooms(heads):
  """Theirs lacks the query's place, which is the same for all its keys."""
  from transformers.models.bloom.modeling_bloom import build_alibi_tensor

  want = (
    build_alibi_tensor(torch.ones(1, 9, dtype=torch.long), heads, torch.float32)
    .numpy()
    .reshape(heads, 1, 9)
  )
  ours = alibi(9, 9, heads).numpy()
  for query in range(9):
    np.testing.assert_allclose(
      ours[:, query, : query + 1] - ours[:, query, :1],
      (want - want[..., :1])[:, 0, : query + 1],
      atol=1e-5,
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_decoders_texts_are_theirs(decoder, beams):
  folder, model = decoder
  want = model.generate(
    torch.tensor([[1, 2, 3]]), max_new_tokens=50, num_beams=beams, do_sample=False, pad_token_id=0
  )[0, 3:].tolist()
  reader = Engine(checkpoints.load_module(folder), beams)
  ours = (
    beam_search(reader, [1, 2, 3], 50)[0][0]
    if beams > 1
    else [t for [t] in generate(reader, [1, 2, 3], 50, temperature=0)]
  )
  assert ours == want


@pytest.mark.parametrize(
  "lower, strip", [(True, None), (False, None), (True, False), (False, True)]
)
def test_wordpiece_is_theirs(tmp_path, lower, strip):
  """On a million characters: words, code, accents, CJK, emoji, control characters, unassigned ones."""
  import tokenizers

  draw = random.Random(0)
  alphabets = [
    "abcdefghijklmnopqrstuvwxyzABCDE",
    "éÀñçßøŁİıǅﬁΣς",
    "中国語日本가나다",
    "😀👍🏽👨‍👩‍👧",
    " \t\n\r\u00a0\u2003\u3000\u200b\u2028",
    ".,!?$+<=>^`|~#@¿«»—…()[]{}_-'\"",
    "\0\x07\x1b\x85\ufffd\ufeff\u0301\u0308\u0378\ue000",
    "0123456789१٣",
  ]
  text = "".join(
    draw.choice(draw.choices(alphabets, [60, 5, 4, 2, 18, 6, 2, 3])[0]) for _ in range(1_000_000)
  )
  letters = sorted({c for c in "".join(alphabets) if c.isprintable() and c != " "})
  letters = sorted(
    set(letters)
    | {c.lower() for c in letters}
    | set(unicodedata.normalize("NFD", "".join(letters)))
  )
  pieces = [
    "[UNK]",
    *letters,
    *(f"##{c}" for c in letters),
    *{
      p + draw.choice(letters[:40]) + draw.choice(letters[:60])
      for p in ("", "##")
      for _ in range(900)
    },
  ]
  vocab = {p: i for i, p in enumerate(dict.fromkeys(pieces))}
  reference = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
  reference.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower, strip_accents=strip)
  reference.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  ours = WordPiece(vocab, lower, strip_accents=strip)
  for i in range(0, len(text), 1000):
    assert ours.encode(text[i : i + 1000]) == reference.encode(text[i : i + 1000]).ids, repr(
      text[i : i + 1000]
    )
