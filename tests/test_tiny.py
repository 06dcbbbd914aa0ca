"""The model in weights/tiny."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT, shared_data

from tinyformer.checkpoints import hub, load_module
from tinyformer.generation import Engine, generate
from tinyformer.kernels.parts import CPU_KERNELS, FUSED
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
from tinyformer.training.documents import read_documents, train_val_split

TINY = ROOT / "weights" / "tiny"


def test_it_is_found_offline_and_has_at_most_16_megabytes():
  assert hub.find("tiny", offline=True) == TINY
  assert sum(f.stat().st_size for f in TINY.iterdir()) <= 16_000_000


def test_its_model_card_states_data_training_and_sizes():
  card = (TINY / "README.md").read_text().lower()
  config = json.loads((TINY / "config.json").read_text())
  vocab_size = f"{config['vocab_size']:,}"
  for text in ("validation", "tokens", "python train.py", "public domain", vocab_size):
    assert text in card


def test_it_predicts_the_next_word_of_a_common_phrase():
  model, tokenizer = load_module(TINY), BytePairEncoding.load(TINY)
  logits = Engine(model)(np.array([tokenizer.encode("He looked at the man and shook his")]))[0]
  head, the = tokenizer.encode(" head")[0], tokenizer.encode(" the")[0]
  assert logits[head] > logits[the]
  assert logits.argmax() == head


def test_cpu_kernels_generate_the_same_tokens_as_the_reference_implementation():
  ids = BytePairEncoding.load(TINY).encode("Once upon a time")
  fast, reference = (
    list(generate(Engine(load_module(TINY, parts=parts)), ids, 100, temperature=0))
    for parts in (CPU_KERNELS, FUSED)
  )
  assert len(fast) == 100
  assert fast == reference


@pytest.mark.slow
def test_at_least_95_percent_of_generated_words_occur_in_the_training_text():
  names = ("pg_shortstories", "fairytales")
  paths = [shared_data(f"prose/{name}.txt.xz") for name in names]
  documents, _ = train_val_split(read_documents(paths), seed=1337)
  words = re.compile(r"[a-z]+(?:'[a-z]+)?")
  training_words = {word for d in documents for word in words.findall(d.lower())}
  tokenizer, engine = BytePairEncoding.load(TINY), Engine(load_module(TINY), 8)
  prompt = tokenizer.encode("\n")
  texts = []
  for seed in range(1, 5):
    engine.position = 0
    tokens = generate(engine, prompt, 250, seed=seed, end=tokenizer.end)
    texts += zip(*tokens, strict=True)
  generated = []
  for text in texts:
    decoded = tokenizer.decode(t for t in text if t is not None)
    generated += words.findall(decoded.lower())[:-1]  # the last word may be incomplete
  share = sum(word in training_words for word in generated) / len(generated)
  assert len(generated) > 2000
  assert share >= 0.95, f"{share:.1%} of {len(generated)}"
