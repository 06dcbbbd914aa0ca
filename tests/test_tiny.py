"""The model that comes with the project."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT, shared_data

from models import gpt2
from tinyformer.checkpoints import hub
from tinyformer.generation import Engine, generate
from tinyformer.kernels.parts import CPU_KERNELS
from tinyformer.tokenization.byte_level_bpe import BytePairEncoding
from tinyformer.training.documents import train_val_split, read_documents

TINY = ROOT / "weights" / "tiny"


def test_it_is_whole_and_small():
  assert hub.find("tiny", offline=True) == TINY
  assert sum(f.stat().st_size for f in TINY.iterdir()) <= 16_000_000


def test_its_card_says_what_it_is():
  card, config = (
    (TINY / "README.md").read_text().lower(),
    json.loads((TINY / "config.json").read_text()),
  )
  for word in (
    "held-out",
    "tokens",
    "python train.py",
    "public domain",
    f"{config['vocab_size']:,}",
  ):
    assert word in card


def test_it_predicts_english():
  """It finds the next word of a common phrase likelier than an unlikely one."""
  model, tokenizer = gpt2.load(TINY), BytePairEncoding.load(TINY)
  logits = Engine(model)(np.array([tokenizer.encode("He looked at the man and shook his")]))[0]
  assert (
    logits[tokenizer.encode(" head")[0]] > logits[tokenizer.encode(" the")[0]]
    and logits.argmax() == tokenizer.encode(" head")[0]
  )


def test_the_fast_parts_write_what_the_plain_ones_do():
  ids = BytePairEncoding.load(TINY).encode("Once upon a time")
  fast, plain = (
    list(generate(Engine(gpt2.load(TINY, **parts)), ids, 100, temperature=0))
    for parts in (CPU_KERNELS, {})
  )
  assert len(fast) == 100 and fast == plain


@pytest.mark.slow
def test_nearly_all_its_words_occur_in_its_training_text():
  documents, _ = train_val_split(
    read_documents(
      [shared_data(f"prose/{name}.txt.xz") for name in ("pg_shortstories", "fairytales")]
    ),
    seed=1337,
  )
  words = re.compile(r"[a-z]+(?:'[a-z]+)?")
  known = {word for d in documents for word in words.findall(d.lower())}
  tokenizer, reader = BytePairEncoding.load(TINY), Engine(gpt2.load(TINY, **CPU_KERNELS), 8)
  texts = []
  for seed in range(1, 5):
    reader.place = 0
    texts += zip(*generate(reader, tokenizer.encode("\n"), 250, seed=seed, end=tokenizer.end))
  written = [
    word
    for text in texts
    for word in words.findall(tokenizer.decode(t for t in text if t is not None).lower())[:-1]
  ]  # the last may be half a word
  share = sum(word in known for word in written) / len(written)
  assert len(written) > 2000 and share >= 0.95, f"{share:.1%} of {len(written)}"
