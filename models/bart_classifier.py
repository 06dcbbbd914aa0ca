"""BART as a classifier: encoder and decoder read the same text, and one vector is classified.

The vector is the decoder's last hidden state at the end-of-text token, because only this position
attends to all others. Source: Lewis et al. 2020, sec. 3.1.
"""

from dataclasses import dataclass

from tinygrad import Tensor

from layers.parts import PLAIN, Parts
from models import bart
from models.bart import BartConfig, BartModel
from models.heads import SequenceClassificationHead, head_from_hf
from models.hf_config import HFConfig
from models.key_map import KeyMap
from transformer import padding_mask


@dataclass(frozen=True)
class BartClassifierConfig(BartConfig):
  """The sizes and settings of a BART with a classification head.

  labels, problem: those of SequenceClassificationHead.
  """

  labels: tuple[str, ...] = ("LABEL_0", "LABEL_1", "LABEL_2")
  problem: str = "single_label_classification"
  eos_token_id: int = 2
  decoder_start_token_id: int = 2


class BartClassifier:
  """Classify texts, or pairs of texts."""

  task = "text-classification"

  def __init__(self, config: BartClassifierConfig, parts: Parts = PLAIN):
    self.config, self.parts = config, parts
    self.vocab_size, self.context = config.vocab_size, config.context
    self.labels = list(config.labels)
    self.model = BartModel(config, parts)
    tanh = parts.activations["tanh"]
    self.head = SequenceClassificationHead(
      config.dim, self.labels, tanh, config.problem, parts.linear
    )

  def __call__(self, ids: Tensor, attention_mask: Tensor | None = None, segments=None) -> Tensor:
    """Return the logits (B, number of labels) of texts (B, T) that end with eos.

    attention_mask (B, T): 1 for tokens, 0 for padding, which must follow the tokens.
    segments: ignored, because BART has no segments.
    """
    memory = self.model.encode(ids, attention_mask)
    memory_mask = None if attention_mask is None else padding_mask(attention_mask)
    x = self.model.decode(self.shift_right(ids), memory, memory_mask)
    positions = Tensor.arange(ids.shape[1])
    is_eos = ids == self.config.eos_token_id
    last = (is_eos * positions).max(1, keepdim=True)
    # A product with a one-hot matrix (B, 1, T) selects the vectors (B, 1, D).
    return self.head((positions == last).float().unsqueeze(1) @ x)

  def shift_right(self, ids: Tensor) -> Tensor:
    """Return the decoder's input (B, T): its first token, and the text without its last token."""
    start = Tensor.full((ids.shape[0], 1), self.config.decoder_start_token_id, dtype=ids.dtype)
    return start.cat(ids[:, :-1], dim=1)


def from_hf(hf: HFConfig) -> BartClassifierConfig:
  """Translate a config.json.

  Raises ValueError for a setting that is missing, invalid or not supported.
  """
  config = bart.from_hf(hf)
  head = head_from_hf(hf, "gelu", "tanh", tied=True)
  last_token = config.vocab_size - 1
  return BartClassifierConfig(
    **vars(config),
    labels=head.labels,
    problem=head.problem,
    eos_token_id=hf.integer("eos_token_id", 2, 0, last_token),
    decoder_start_token_id=hf.integer("decoder_start_token_id", 2, 0, last_token),
  )


KEY_MAP = KeyMap(
  rules={
    r"head\.pooler": "classification_head.dense",
    r"head\.classifier": "classification_head.out_proj",
  }
  | {rf"model\.{pattern}": tensor for pattern, tensor in bart.KEY_MAP.rules.items()},
  ignored=bart.KEY_MAP.ignored,
)
