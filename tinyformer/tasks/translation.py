"""Translate, or otherwise transform, texts with an encoder-decoder (Raffel et al. 2020)."""

from pathlib import Path

from tinyformer.generation import GenerationConfig, generate_seq2seq


class Translator:
  """An encoder-decoder, its tokenizer and the generation settings of its checkpoint.

  key: identifies what determines the kernels, apart from the weights (see CompiledStep).
  """

  def __init__(self, module, tokenizer, folder: Path, key: str | None = None):
    self.module = module
    self.tokenizer = tokenizer
    self.config = GenerationConfig.read(folder, module.vocab_size)
    self.key = key

  def __call__(
    self, text: str, max_new_tokens: int | None = None, num_beams: int | None = None
  ) -> str:
    """Return the text that the model generates for a source text.

    max_new_tokens, num_beams: None uses the checkpoint's settings.
    """
    config = self.config._replace(num_beams=num_beams) if num_beams else self.config
    ids = self.tokenizer.single(self.tokenizer.encode(text))
    target = generate_seq2seq(self.module, ids, config, max_new_tokens, self.key)
    return self.tokenizer.decode(target)
