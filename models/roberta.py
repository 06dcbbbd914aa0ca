"""RoBERTa is BERT with position ids that begin at padding_id + 1. Its training differs too.

Source: Liu et al. 2019. CamemBERT (Martin et al. 2020) and XLM-R have the same architecture.
"""

from dataclasses import dataclass

from tinygrad import Tensor

from models import bert
from models.heads import head_from_hf
from models.hf_config import HFConfig


@dataclass(frozen=True)
class RobertaConfig(bert.BertConfig):
  """The sizes and settings of a RoBERTa. context does not count the unused first positions."""

  padding_id: int = 1


class Roberta(bert.Bert):
  """Compute a vector for each token, and the output of a head (models/heads.py)."""

  config: RobertaConfig

  @property
  def first_position(self) -> int:
    """Return the row of the position table that belongs to the first token."""
    return self.config.padding_id + 1

  def position_ids(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return RoBERTa's position ids (B, T). The attention mask is ignored.

    Tokens other than padding are numbered from padding_id + 1. Padding tokens have position
    padding_id wherever they occur.
    """
    is_token = (ids != self.config.padding_id).int()
    return is_token.cumsum(1) * is_token + self.config.padding_id


def from_hf(hf: HFConfig) -> RobertaConfig:
  """Translate a config.json. Raises ValueError if the configuration is not supported."""
  values = dict(vars(bert.from_hf(hf)))
  padding_id = hf.integer("pad_token_id", 1, maximum=values["context"] - 2)
  values["context"] -= padding_id + 1
  # The activation of the masked-language-modelling head is always GELU.
  values["head"] = head_from_hf(hf, "gelu", "tanh", hf.flag("tie_word_embeddings", True))
  return RobertaConfig(**values, padding_id=padding_id)


# BERT's names with another prefix, and other names for the heads.
KEY_MAP = bert.key_map(
  "roberta",
  {
    r"head\.dense": "lm_head.dense",
    r"head\.norm": "lm_head.layer_norm",
    r"head\.bias": "lm_head.bias",
    r"head\.decoder": "lm_head.decoder",
    r"head\.pooler": "classifier.dense",
    r"head\.classifier": "classifier.out_proj",
    r"head\.token_classifier": "classifier",
    r"head\.qa_outputs": "qa_outputs",
  },
)
