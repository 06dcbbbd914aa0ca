"""Decoder-only models, ALiBi and WordPiece against transformers, with random parameters.

Needs the extra `reference`; runs in .ci/run.
"""

import random
import re
import unicodedata

import numpy as np
import pytest
from conftest import ROOT, all_parts, close, randomise, shared_data
from tinygrad import Tensor, nn

from layers.parts import PLAIN
from layers.positions import alibi, rope_inv_freq, rope_scale
from models import gpt2
from tinyformer import checkpoints
from tinyformer.checkpoints import architecture, load_module, read_config
from tinyformer.generation import Engine, generate
from tinyformer.generation.beam_search import beam_search
from tinyformer.kernels.parts import CPU_KERNELS
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
from tinyformer.tokenization.wordpiece import WordPiece
from transformer import loss

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import make_fixtures  # noqa: E402

pytestmark = pytest.mark.slow
SHAPES = list(make_fixtures.SHAPES.values())


def reference_gpt2(sizes, seed=0):
  """Return a random GPT-2 of transformers."""
  config = transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
  model = transformers.GPT2LMHeadModel(config).eval()
  make_fixtures.randomise(model, seed)
  return model


def reference_logits(model, ids, **inputs):
  with torch.no_grad():
    return model(torch.tensor(ids), **inputs).logits.float().numpy()


def random_ids(sizes, length=11):
  return np.random.default_rng(5).integers(0, sizes["vocab_size"], (3, length))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", SHAPES)
def test_logits_equal_hugging_face(tmp_path, sizes, seed):
  reference, ids = reference_gpt2(sizes, seed), random_ids(sizes)
  reference.save_pretrained(tmp_path)
  close(load_module(tmp_path)(Tensor(ids)).numpy(), reference_logits(reference, ids))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("sizes", SHAPES)
def test_logits_of_16_bit_checkpoints_equal_hugging_face(tmp_path, sizes, dtype):
  reference, ids = reference_gpt2(sizes).to(getattr(torch, dtype)), random_ids(sizes)
  reference.save_pretrained(tmp_path)
  close(load_module(tmp_path)(Tensor(ids)).numpy(), reference_logits(reference.float(), ids))


@pytest.mark.parametrize("sizes", SHAPES)
def test_logits_of_sharded_checkpoints_equal_hugging_face(tmp_path, sizes):
  reference, ids = reference_gpt2(sizes), random_ids(sizes)
  reference.save_pretrained(tmp_path, max_shard_size="20KB")
  assert (tmp_path / "model.safetensors.index.json").exists()
  assert not (tmp_path / "model.safetensors").exists()
  close(load_module(tmp_path)(Tensor(ids)).numpy(), reference_logits(reference, ids))


@pytest.mark.parametrize(
  "activation", ["gelu_new", "gelu", "relu", "silu", "tanh", "gelu_pytorch_tanh"]
)
def test_activations_equal_hugging_face(tmp_path, activation):
  sizes = SHAPES[0] | {"activation_function": activation}
  reference, ids = reference_gpt2(sizes), random_ids(sizes)
  reference.save_pretrained(tmp_path)
  close(load_module(tmp_path)(Tensor(ids)).numpy(), reference_logits(reference, ids))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_hugging_face_loads_saved_models(tmp_path, dtype):
  config = gpt2.GPT2Config(61, 19, 12, 3, 2, ff_dim=20, eps=1e-3)
  checkpoints.save(randomise(gpt2.GPT2(config)), tmp_path, dtype)
  reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
  ids = random_ids({"vocab_size": 61})
  close(load_module(tmp_path)(Tensor(ids)).numpy(), reference_logits(reference.eval(), ids))


def test_logits_of_a_published_checkpoint_equal_hugging_face():
  folder = shared_data("checkpoints/tiny-llm-cicd-gpt2-dc0a59b")
  reference = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
  ids = [[464, 3290, 373, 1043]]
  close(load_module(folder)(Tensor(ids)).numpy(), reference_logits(reference, ids))


@pytest.mark.parametrize("sizes", SHAPES)
def test_greedy_text_equals_hugging_face(tmp_path, sizes):
  reference = reference_gpt2(sizes)
  reference.save_pretrained(tmp_path)
  prompt = [1, 2, 3]
  count = sizes["n_positions"] - len(prompt)
  output = reference.generate(
    torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0
  )
  engine = Engine(load_module(tmp_path))
  actual = [token for [token] in generate(engine, prompt, count, temperature=0)]
  assert actual == output[0, 3:].tolist()


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("end", [None, 7, 30])
def test_beams_and_scores_equal_hugging_face(tmp_path, end, length_penalty):
  reference = reference_gpt2(SHAPES[0])
  reference.save_pretrained(tmp_path)
  output = reference.generate(
    torch.tensor([[1, 2, 3]]),
    max_new_tokens=12,
    num_beams=4,
    num_return_sequences=4,
    do_sample=False,
    eos_token_id=end,
    pad_token_id=0,
    length_penalty=length_penalty,
    return_dict_in_generate=True,
    output_scores=True,
  )
  engine = Engine(load_module(tmp_path), 4)
  beams = beam_search(engine, [1, 2, 3], 12, lambda n: float(n) ** length_penalty, end)
  sequences = output.sequences[:, 3:].tolist()
  scores = output.sequences_scores.tolist()
  for (ids, score), sequence, expected_score in zip(beams, sequences, scores, strict=True):
    assert ids == sequence[: len(ids)]
    # The rest is padding.
    assert not any(sequence[len(ids) :])
    assert score == pytest.approx(expected_score, abs=1e-4)


def test_the_bundled_model_equals_hugging_face():
  folder = ROOT / "weights" / "tiny"
  tokenizer = BytePairEncoding.load(folder)
  reference_tokenizer = transformers.GPT2Tokenizer(
    str(folder / "vocab.json"), str(folder / "merges.txt")
  )
  text = "Once upon a time, there was a ship on its way to Mars — 'What?' said the captain."
  assert tokenizer.encode(text) == reference_tokenizer(text)["input_ids"]
  # In float32, the error of transformers itself is 1.1e-5 of the standard deviation.
  reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
  ids = [tokenizer.encode(text)]
  close(load_module(folder)(Tensor(ids)).numpy(), reference_logits(reference.eval(), ids), 2e-5)


DECODER = dict(
  vocab_size=61,
  hidden_size=16,
  num_attention_heads=4,
  num_hidden_layers=2,
  intermediate_size=24,
  max_position_embeddings=64,
  bos_token_id=None,
  eos_token_id=None,
)
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
  "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}},
  "yarn": {
    "rope_parameters": {
      "rope_type": "yarn",
      "rope_theta": 1e4,
      "factor": 4.0,
      "original_max_position_embeddings": 16,
    }
  },
}


@all_parts()
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize(
  "shape",
  [
    dict(num_key_value_heads=2),
    dict(num_key_value_heads=4, head_dim=6, tie_word_embeddings=True),
    dict(num_key_value_heads=1, rms_norm_eps=1e-3),
  ],
)
def test_logits_of_llama_equal_hugging_face(tmp_path, shape, rope, parts):
  config = transformers.LlamaConfig(**DECODER, **shape, **ROPES[rope])
  reference = transformers.LlamaForCausalLM(config).eval()
  make_fixtures.randomise(reference, 0)
  reference.save_pretrained(tmp_path)
  ids = random_ids(DECODER, 40)
  model = checkpoints.load_module(tmp_path, parts=parts)
  # The bound is wider because the first norm divides by 0.02.
  close(model(Tensor(ids)).numpy(), reference_logits(reference, ids), 5e-5)


@pytest.mark.parametrize("head_dim", [6, 64])
@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"beta_fast": 16, "beta_slow": 2},
    {"attention_factor": 1.3, "truncate": False},
    {"mscale": 0.707, "mscale_all_dim": 0.5},
    {"original_max_position_embeddings": 4},
  ],
)
def test_frequencies_and_scale_of_yarn_equal_hugging_face(settings, head_dim):
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

  rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096} | settings
  config = transformers.LlamaConfig(
    hidden_size=4 * head_dim,
    num_attention_heads=4,
    max_position_embeddings=16384,
    rope_parameters=rope | {"rope_theta": 1e5},
  )
  inv_freq, scale = ROPE_INIT_FUNCTIONS["yarn"](config)
  np.testing.assert_allclose(rope_inv_freq(head_dim, 1e5, rope), inv_freq.numpy(), rtol=1e-6)
  assert rope_scale(rope) == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("window", [3, 16, None])
def test_logits_of_mistral_equal_hugging_face(tmp_path, window):
  config = transformers.MistralConfig(
    **DECODER, num_key_value_heads=2, head_dim=4, sliding_window=window
  )
  reference = transformers.MistralForCausalLM(config).eval()
  make_fixtures.randomise(reference, 1)
  reference.save_pretrained(tmp_path)
  ids = random_ids(DECODER, 40)
  model = checkpoints.load_module(tmp_path)
  close(model(Tensor(ids)).numpy(), reference_logits(reference, ids), 5e-5)


GPT = dict(
  vocab_size=61,
  n_positions=64,
  n_embd=16,
  n_head=4,
  n_layer=2,
  bos_token_id=None,
  eos_token_id=None,
)
GROUPED = DECODER | dict(num_key_value_heads=2)
DECODERS = {
  "gpt2": transformers.GPT2Config(**GPT),
  "gpt": transformers.OpenAIGPTConfig(**GPT),
  "llama": transformers.LlamaConfig(**GROUPED),
  "mistral": transformers.MistralConfig(**GROUPED, head_dim=6, sliding_window=5),
  "mixtral": transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
  "mixtral with one of eight experts": transformers.MixtralConfig(
    **GROUPED, num_local_experts=8, num_experts_per_tok=1, sliding_window=9
  ),
  "qwen2": transformers.Qwen2Config(**GROUPED),
  "qwen2, tied head": transformers.Qwen2Config(**GROUPED, tie_word_embeddings=True),
  "qwen3": transformers.Qwen3Config(**GROUPED, head_dim=6),
  "qwen3, tied head": transformers.Qwen3Config(
    **DECODER, num_key_value_heads=4, head_dim=8, rms_norm_eps=1e-3, tie_word_embeddings=True
  ),
  "smollm3": transformers.SmolLM3Config(
    **GROUPED, pad_token_id=None, no_rope_layers=[0, 1], rms_norm_eps=1e-3
  ),
  "smollm3, YaRN": transformers.SmolLM3Config(
    **GROUPED | dict(num_hidden_layers=4), pad_token_id=None, **ROPES["yarn"]
  ),
  "gpt_neox": transformers.GPTNeoXConfig(**DECODER, rotary_pct=0.5),
  "gpt_neox, full RoPE, sequential": transformers.GPTNeoXConfig(
    **DECODER, rotary_pct=1.0, use_parallel_residual=False, tie_word_embeddings=True
  ),
  "gpt_neox, tanh GELU": transformers.GPTNeoXConfig(
    **DECODER | dict(num_attention_heads=2), hidden_act="gelu_new", layer_norm_eps=1e-3
  ),
}


def save_decoder(name, folder):
  """Save a random checkpoint and return the model of transformers."""
  reference = transformers.AutoModelForCausalLM.from_config(DECODERS[name]).eval()
  make_fixtures.randomise(reference, 2)
  reference.save_pretrained(folder)
  return reference


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request, tmp_path_factory):
  """Return the folder of a random checkpoint and the model of transformers."""
  folder = tmp_path_factory.mktemp("decoder")
  return folder, save_decoder(request.param, folder)


@all_parts()
def test_logits_equal_hugging_face_with_and_without_left_padding(decoder, parts):
  folder, reference = decoder
  ids = random_ids({"vocab_size": 61}, 40)
  model = checkpoints.load_module(folder, parts=parts)
  close(model(Tensor(ids)).numpy(), reference_logits(reference, ids), 5e-5)

  attention_mask = np.ones(ids.shape, bool)
  attention_mask[0, :9] = attention_mask[2, :1] = False
  expected = reference_logits(
    reference,
    ids,
    attention_mask=torch.tensor(attention_mask.astype(int)),
    position_ids=torch.tensor((attention_mask.cumsum(1) - 1).clip(0)),
  )
  actual = model(Tensor(ids), attention_mask=Tensor(attention_mask)).numpy()
  close(actual[attention_mask], expected[attention_mask], 5e-5)


def in_tensor_layout(grads, tensor, parameters, key_map, heads):
  """Return the gradient of a checkpoint's tensor from those of the parameters that it holds."""
  arrays = [grads[p].numpy() for p in parameters]
  if re.search(key_map.by_head, tensor):
    by_head = [part for array in arrays for part in np.split(array, heads)]
    arrays = [by_head[n * heads + head] for head in range(heads) for n in range(len(arrays))]
  joined = np.concatenate(arrays)
  return joined.T if re.search(key_map.transposed, tensor) else joined


# In memory, transformers' Mixtral has other parameters than its checkpoint.
@pytest.mark.parametrize("parts", [PLAIN, CPU_KERNELS], ids=["plain", "CPU kernels"])
@pytest.mark.parametrize("name", [name for name in DECODERS if "mixtral" not in name])
def test_loss_and_gradients_equal_hugging_face(tmp_path, name, parts):
  reference = save_decoder(name, tmp_path)
  ids = random_ids({"vocab_size": 61}, 20)
  output = reference(torch.tensor(ids), labels=torch.tensor(ids))
  output.loss.backward()
  expected = {n: p.grad.numpy() for n, p in reference.named_parameters()}
  if name.startswith("gpt_neox"):  # the name in a checkpoint differs from that in memory
    expected = {n.replace("lm_head", "embed_out"): gradient for n, gradient in expected.items()}

  model = load_module(tmp_path, parts=parts)
  parameters = nn.state.get_state_dict(model)
  value = loss(model(Tensor(ids[:, :-1])), Tensor(ids[:, 1:]), smoothing=0)
  grads = dict(zip(parameters, value.gradient(*parameters.values()), strict=True))
  Tensor.realize(value, *grads.values())
  assert value.item() == pytest.approx(output.loss.item(), abs=1e-4)
  key_map = architecture(read_config(tmp_path))[0].KEY_MAP
  table = key_map.table(model)
  assert table.keys() == expected.keys()
  for tensor, sources in table.items():
    actual = in_tensor_layout(grads, tensor, sources, key_map, model.config.heads)
    assert np.abs(actual - expected[tensor]).max() < 1e-4, tensor
    # The softmax cancels the bias of the keys, unless RoPE rotates them.
    if expected[tensor].std() > 1e-6:
      assert np.abs(actual - expected[tensor]).max() < 2e-3 * expected[tensor].std(), tensor


@pytest.mark.parametrize("heads", [4, 12])
def test_alibi_equals_bloom_up_to_a_constant_per_query(heads):
  """BLOOM omits the position of the query, which is the same for all keys."""
  from transformers.models.bloom.modeling_bloom import build_alibi_tensor

  attention_mask = torch.ones(1, 9, dtype=torch.long)
  expected = build_alibi_tensor(attention_mask, heads, torch.float32).numpy().reshape(heads, 9)
  actual = alibi(9, 9, heads).numpy()
  for query in range(9):
    keys = slice(query + 1)
    np.testing.assert_allclose(
      actual[:, query, keys] - actual[:, query, :1],
      (expected - expected[:, :1])[:, keys],
      atol=1e-5,
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_generated_texts_equal_hugging_face(decoder, beams):
  folder, reference = decoder
  prompt = [1, 2, 3]
  output = reference.generate(
    torch.tensor([prompt]), max_new_tokens=50, num_beams=beams, do_sample=False, pad_token_id=0
  )
  engine = Engine(checkpoints.load_module(folder), beams)
  if beams > 1:
    actual = beam_search(engine, prompt, 50)[0][0]
  else:
    actual = [token for [token] in generate(engine, prompt, 50, temperature=0)]
  assert actual == output[0, 3:].tolist()


@pytest.mark.parametrize(
  "lowercase, strip_accents", [(True, None), (False, None), (True, False), (False, True)]
)
def test_wordpiece_equals_tokenizers(lowercase, strip_accents):
  """The text is a million random characters.

  It contains letters, digits, accents, CJK, emoji, control characters and unassigned characters.
  """
  import tokenizers

  rng = random.Random(0)
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
  alphabet_weights = [60, 5, 4, 2, 18, 6, 2, 3]
  text = "".join(rng.choice(rng.choices(alphabets, alphabet_weights)[0]) for _ in range(1_000_000))

  printable = {c for c in "".join(alphabets) if c.isprintable() and c != " "}
  letters = sorted(printable)
  lowercased = {c.lower() for c in letters}
  decomposed = set(unicodedata.normalize("NFD", "".join(letters)))
  letters = sorted(printable | lowercased | decomposed)
  continuations = [f"##{c}" for c in letters]
  pairs = {
    prefix + rng.choice(letters[:40]) + rng.choice(letters[:60])
    for prefix in ("", "##")
    for _ in range(900)
  }
  tokens = dict.fromkeys(["[UNK]", *letters, *continuations, *pairs])
  vocab = {token: i for i, token in enumerate(tokens)}

  reference = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
  reference.normalizer = tokenizers.normalizers.BertNormalizer(
    lowercase=lowercase, strip_accents=strip_accents
  )
  reference.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  tokenizer = WordPiece(vocab, lowercase, strip_accents=strip_accents)
  for i in range(0, len(text), 1000):
    chunk = text[i : i + 1000]
    assert tokenizer.encode(chunk) == reference.encode(chunk).ids, repr(chunk)
