"""Fill in masked tokens (Devlin et al. 2019, sec. 3.1)."""

import re

from tinyformer.tasks import InputError, Prediction
from tinyformer.tasks.encoder import Encoder, best_predictions, softmax


def fill_mask(encoder: Encoder, text: str, top_k: int = 5) -> list[list[Prediction]]:
  """Return the top_k most probable tokens for each mask of a text.

  [MASK] and <mask> both stand for the model's mask token. Raises ValueError if the tokenizer has no
  mask token, and InputError if the text contains no mask.
  """
  tokenizer = encoder.tokenizer
  if not tokenizer.mask:
    raise ValueError("this model's tokenizer has no mask token: use a model for fill-mask")
  mask_id, mask_token = tokenizer.mask
  text = re.sub(r"\[MASK\]|<mask>", lambda _: mask_token, text)
  ids = tokenizer.single(tokenizer.encode(text, (mask_token,)))
  positions = [position for position, i in enumerate(ids) if i == mask_id]
  if not positions:
    raise InputError(f"the text has no {mask_token} to fill in")
  special_tokens = {i: token for token, i in reversed(tokenizer.specials.items())}

  def token_name(i: int) -> str:
    return tokenizer.decode([i]).strip() or special_tokens.get(i, f"token {i}")

  probabilities = softmax(encoder(ids))
  return [best_predictions(probabilities[p], token_name, top_k) for p in positions]
