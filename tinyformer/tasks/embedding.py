"""Embed texts as vectors. Their cosine similarity measures how similar the texts are."""

from collections.abc import Sequence

import numpy as np

from tinyformer.checkpoints.sentence_modules import POOLINGS, SentenceConfig
from tinyformer.tasks import InputError
from tinyformer.tasks.encoder import Encoder


def embed_texts(
  encoder: Encoder,
  texts: Sequence[str],
  config: SentenceConfig,
  prompt_name: str | None = None,
) -> np.ndarray:
  """Return the embeddings (N, D) of N texts.

  prompt_name: the prompt of `config` to put before each text; None uses the default prompt, if any.
  Raises InputError if there is no text or no prompt of this name.
  Source: Reimers & Gurevych 2019, sec. 3.
  """
  if not texts:
    raise InputError("there is no text to embed: pass at least one")
  prompt = find_prompt(config, prompt_name)
  ids = [token_ids(encoder, prompt + text, config) for text in texts]
  # The special tokens after the text do not belong to the prompt.
  prompt_length = len(token_ids(encoder, prompt, config)) - len(encoder.tokenizer.suffix_ids)
  skipped = 0 if config.include_prompt or not prompt else prompt_length
  embeddings = {
    i: pool(hidden[skipped : len(ids[i])], config) for i, hidden in encoder.run_many(ids)
  }
  return np.stack([embeddings[i] for i in range(len(ids))])


def find_prompt(config: SentenceConfig, name: str | None) -> str:
  """Return the prompt of a name, the default prompt for None, or "" if there is none.

  Raises InputError for an unknown name.
  """
  if name is None:
    name = config.default_prompt
  if name is None:
    return ""
  if name not in config.prompts:
    names = ", ".join(config.prompts) or "none"
    raise InputError(f"this model has no prompt {name!r}; its prompts are: {names}")
  return config.prompts[name]


def pool(hidden: np.ndarray, config: SentenceConfig) -> np.ndarray:
  """Return the embedding (D') of a text's last hidden state (T, D)."""
  x = np.concatenate([POOLINGS[name](hidden) for name in config.poolings])
  for layer in config.layers:
    x = layer(x)
  return x


def token_ids(encoder: Encoder, text: str, config: SentenceConfig) -> list[int]:
  """Return the IDs of a text with its special tokens, truncated to the maximum length."""
  tokenizer = encoder.tokenizer
  length = min(config.max_length or encoder.context, encoder.context)
  num_special = len(tokenizer.single([]))
  ids = tokenizer.encode(text.lower() if config.lowercase else text)
  return tokenizer.single(ids[: max(length - num_special, 0)])
