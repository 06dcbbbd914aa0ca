"""Sentence embeddings: rows per second of tinyformer, sentence-transformers and transformers."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

NUM_SENTENCES = 1000
# Embedding sentences one by one is slow, so only a part of them is measured.
ONE_BY_ONE_STRIDE = 20
BATCHED = "1,000 sentences, batched"
ONE_BY_ONE = "sentences one by one"
FIGURES = [BATCHED, ONE_BY_ONE]
# The batch sizes that are tried for the peers. sentence-transformers' default is 32.
BATCH_SIZES = (32, 128)

Embed = Callable[[list[str], int], object]


def sentences(folder: Path) -> list[str]:
  """Return sentences of 2 to 60 words of the vocabulary, the short words more often."""
  rng = np.random.default_rng(0)
  vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split()
  words = [word for word in vocabulary if word.isascii() and word.isalpha()][:10_000]
  ends = [word[2:] for word in vocabulary if word.startswith("##") and word[2:].isalpha()]
  result = []
  for length in np.clip(rng.lognormal(2.6, 0.6, NUM_SENTENCES), 2, 60).astype(int):
    ranks = rng.zipf(1.3, length) % len(words)
    stems = [words[rank] for rank in ranks]
    # A tenth of the words consists of several tokens.
    compound = rng.random(length) < 0.1
    parts = [
      stem + ends[rng.integers(len(ends))] if split else stem
      for stem, split in zip(stems, compound, strict=True)
    ]
    result.append(" ".join(parts).capitalize() + ".")
  return result


def tinyformer_embedder(folder: Path) -> Embed:
  """Return a function that embeds sentences; it chooses its batches itself."""
  import tinyformer

  model = tinyformer.load(folder)
  return lambda texts, batch_size: model.embed(texts)


def sentence_transformers_embedder(folder: Path) -> Embed:
  import sentence_transformers

  model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
  return lambda texts, batch_size: model.encode(texts, batch_size=batch_size)


def transformers_embedder(folder: Path) -> Embed:
  """Return a function that embeds sentences, sorted by length, with the mean over the tokens."""
  import torch
  import transformers

  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModel.from_pretrained(folder).eval()

  def embed(texts: list[str], batch_size: int) -> list:
    ordered = sorted(texts, key=len)
    results = []
    for start in range(0, len(ordered), batch_size):
      batch = ordered[start : start + batch_size]
      inputs = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
      with torch.inference_mode():
        hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        means = (hidden * mask).sum(1) / mask.sum(1)
        results.append(torch.nn.functional.normalize(means).numpy())
    return results

  return embed


EMBEDDERS: dict[str, Callable[[Path], Embed]] = {
  "tinyformer": tinyformer_embedder,
  "sentence-transformers": sentence_transformers_embedder,
  "torch": transformers_embedder,
}
NAMES = [f"{library} float32" for library in EMBEDDERS]


def embeddings(name: str, folder: Path, threads: int) -> Callable[[str], list[float]]:
  """Load one peer and return a function that measures sentences per second."""
  library = name.split()[0]
  texts = sentences(folder)
  embed = EMBEDDERS[library](folder)
  if library != "tinyformer":
    import torch

    torch.set_num_threads(threads)

  def rate(texts: list[str], batch_size: int) -> float:
    start = time.perf_counter()
    embed(texts, batch_size)
    return len(texts) / (time.perf_counter() - start)

  def measure(figure: str) -> list[float]:
    if figure == BATCHED:
      sizes = (0,) if library == "tinyformer" else BATCH_SIZES
      return [max(rate(texts, size) for size in sizes)]
    some = texts[::ONE_BY_ONE_STRIDE]
    start = time.perf_counter()
    for text in some:
      embed([text], 1)
    return [len(some) / (time.perf_counter() - start)]

  return measure
