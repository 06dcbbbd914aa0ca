"""The commands and the Python API on random models with tokenizers, against transformers.

Needs the extra `reference`; runs in .ci/run.
"""

import numpy as np
import pytest

import attend
import gpt
import tinyformer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
import make_fixtures  # noqa: E402

pytestmark = pytest.mark.slow
V = 300
TEXT = "The man took his hat and went out. Ann Lee lives in Rome; she has 12 cats, and a house."
DECODER = make_fixtures.COMMON | dict(vocab_size=V)
DECODERS = {
  "qwen2": transformers.Qwen2Config(**DECODER, num_key_value_heads=2),
  "qwen3": transformers.Qwen3Config(**DECODER, num_key_value_heads=2, head_dim=6),
  "smollm3": transformers.SmolLM3Config(
    **DECODER, num_key_value_heads=2, pad_token_id=None, no_rope_layers=[0, 1]
  ),
  "gpt_neox": transformers.GPTNeoXConfig(**DECODER | dict(num_attention_heads=2)),
}
ENCODER = make_fixtures.ENCODER | dict(vocab_size=V, max_position_embeddings=64)
ENCODERS = {
  "distilbert": transformers.DistilBertConfig(
    vocab_size=V, dim=12, n_heads=3, n_layers=2, hidden_dim=20, id2label=ENCODER["id2label"]
  ),
  "modernbert": transformers.ModernBertConfig(
    **ENCODER | dict(num_hidden_layers=4),
    local_attention=6,
    pad_token_id=0,
    classifier_pooling="mean",
  ),
}


def byte_level_tokenizer(special_tokens=()):
  """Return a byte-level BPE tokenizer with NFC, as Qwen2, Pythia and ModernBERT have."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.normalizer = tokenizers.normalizers.NFC()
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=V,
    special_tokens=list(special_tokens),
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
  )
  tokenizer.train_from_iterator([TEXT] * 3, trainer)
  return tokenizer


@pytest.fixture(params=DECODERS)
def decoder(request, tmp_path):
  """Return the folder of a random decoder with a tokenizer, and the same in transformers."""
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer())
  tokenizer.save_pretrained(tmp_path)
  config = DECODERS[request.param]
  config.vocab_size = len(tokenizer)
  reference = transformers.AutoModelForCausalLM.from_config(config).eval()
  make_fixtures.randomise(reference, 3)
  reference.save_pretrained(tmp_path)
  (tmp_path / "generation_config.json").unlink()
  return tmp_path, reference, tokenizer


def test_decoders_generate_the_text_of_transformers_and_show_their_attention(decoder, capsys):
  folder, reference, tokenizer = decoder
  prompt = "The man took"
  ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
  output = reference.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)
  # Random models generate invalid UTF-8. We hold back an incomplete character at the end.
  expected = tokenizer.decode(output[0, ids.shape[1] :]).rstrip("\ufffd")
  assert len(expected) > 3
  model = tinyformer.load(folder)
  text = model.generate(prompt, max_new_tokens=40, temperature=0)
  assert text.rstrip("\ufffd") == expected
  gpt.main(["-m", str(folder), "-p", prompt, "-n", "40", "-t", "0", "-q"])
  assert expected.strip() in capsys.readouterr().out
  attend.main(["-m", str(folder), "-p", TEXT[:30], "--html", str(folder / "page.html"), "-q"])
  assert (folder / "page.html").stat().st_size > 10_000
  run = tinyformer.inspect(model, TEXT[:30])
  np.testing.assert_allclose(run.attention.sum(-1), 1, atol=1e-5)


SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def encoder_tokenizer(name):
  """Return a tokenizer with BERT's special tokens: WordPiece for DistilBERT, else byte-level."""
  if name == "distilbert":
    tokenizer = tokenizers.BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator([TEXT] * 3, vocab_size=V, special_tokens=list(SPECIAL))
    tokenizer = tokenizer._tokenizer
  else:
    tokenizer = byte_level_tokenizer(SPECIAL)
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B [SEP]",
    special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token="[PAD]",
    unk_token="[UNK]",
    cls_token="[CLS]",
    sep_token="[SEP]",
    mask_token="[MASK]",
  )


@pytest.fixture(params=ENCODERS)
def encoder(request, tmp_path):
  """Return a function: a head -> a model loaded from a random checkpoint, and the reference."""
  tokenizer = encoder_tokenizer(request.param)
  config = ENCODERS[request.param]
  config.vocab_size = len(tokenizer)
  references = make_fixtures.encoders(config, seed=3)

  def load(head):
    folder = tmp_path / head
    references[head].save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tinyformer.load(folder), references[head], tokenizer

  return load


def reference_output(reference, tokenizer, *texts):
  inputs = tokenizer(*texts, return_tensors="pt")
  inputs.pop("token_type_ids", None)
  with torch.no_grad():
    return inputs["input_ids"][0], reference(**inputs)


def test_encoders_perform_their_tasks_as_in_transformers(encoder):
  masked = "The man took his [MASK] and went out."
  model, reference, tokenizer = encoder("ForMaskedLM")
  ids, out = reference_output(reference, tokenizer, masked)
  position = ids.tolist().index(4)
  probabilities = out.logits[0, position].softmax(-1)
  [predictions] = model.fill_mask(masked, top_k=3)
  np.testing.assert_allclose(
    [p.score for p in predictions], probabilities.topk(3).values.numpy(), atol=1e-4
  )

  model, reference, tokenizer = encoder("ForSequenceClassification")
  _, out = reference_output(reference, tokenizer, TEXT)
  labels = ("calm", "glad", "sad", "wry")
  expected = dict(zip(labels, out.logits[0].softmax(-1).tolist(), strict=True))
  actual = {p.label: p.score for p in model.classify(TEXT)}
  assert actual == pytest.approx(expected, abs=1e-4)

  model, reference, tokenizer = encoder("ForTokenClassification")
  entities = model.tag(TEXT)
  assert {entity.label for entity in entities} <= set(labels) and entities
  assert all(entity.text == TEXT[entity.start : entity.end] for entity in entities)

  model, reference, tokenizer = encoder("ForQuestionAnswering")
  [answer] = model.answer("Who lives in Rome?", TEXT)
  assert answer.text == TEXT[answer.start : answer.end].strip() and answer.text

  model, reference, tokenizer = encoder("Model")
  _, out = reference_output(reference, tokenizer, TEXT)
  mean = out.last_hidden_state[0].mean(0).numpy()
  [vector] = model.embed([TEXT])
  cosine = mean @ vector / np.linalg.norm(mean) / np.linalg.norm(vector)
  assert cosine == pytest.approx(1, abs=1e-5)
  run = tinyformer.inspect(model, TEXT[:30])
  np.testing.assert_allclose(run.attention.sum(-1), 1, atol=1e-5)
