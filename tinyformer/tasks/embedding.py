"""Embed texts as vectors. Their cosine similarity measures how similar the texts are."""

from collections.abc import Sequence

import numpy as np

from tinyformer.tasks.encoder import Encoder


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
  """Return the embeddings (N, D) of N texts: the mean of the last hidden state over the tokens.

  Source: Reimers & Gurevych 2019, sec. 3.
  """
  tokenizer = encoder.tokenizer
  embeddings = []
  for text in texts:
    ids = tokenizer.single(tokenizer.encode(text))
    embeddings.append(encoder(ids)[: len(ids)].mean(0))
  return np.stack(embeddings)
