"""DistilBERT is BERT with half of the layers and without segment embeddings.

It was trained to predict the outputs of BERT. Source: Sanh et al. 2019, sec. 3.
"""

from models import bert
from models.heads import IGNORED_HEADS, head_from_hf
from models.hf_config import HFConfig
from models.key_map import KeyMap


class DistilBert(bert.Bert):
  """Compute a vector for each token, and the output of a head (models/heads.py)."""


def from_hf(hf: HFConfig) -> bert.BertConfig:
  """Translate a config.json. Raises ValueError if the configuration is not supported."""
  activation = hf.activation("activation", "gelu")
  dim = hf.size("dim", 768)
  tied = hf.flag("tie_word_embeddings", True)
  return bert.BertConfig(
    vocab_size=hf.size("vocab_size", 30522),
    context=hf.size("max_position_embeddings", 512),
    dim=dim,
    heads=hf.size("n_heads", 12, divides=dim),
    num_layers=hf.size("n_layers", 6),
    ff_dim=hf.size("hidden_dim", 4 * 768),
    segments=None,
    activation=activation,
    head=head_from_hf(hf, activation, "relu", tied),
  )


LAYER = r"distilbert.transformer.layer.\1."
KEY_MAP = KeyMap(
  rules={
    r"tokens": "distilbert.embeddings.word_embeddings",
    r"positions": "distilbert.embeddings.position_embeddings",
    r"norm": "distilbert.embeddings.LayerNorm",
    r"blocks\.(\d+)\.attn\.(q|k|v|out)": LAYER + r"attention.\2_lin",
    r"blocks\.(\d+)\.attn_norm": LAYER + "sa_layer_norm",
    r"blocks\.(\d+)\.ff_norm": LAYER + "output_layer_norm",
    r"blocks\.(\d+)\.ff\.up": LAYER + "ffn.lin1",
    r"blocks\.(\d+)\.ff\.down": LAYER + "ffn.lin2",
    r"head\.dense": "vocab_transform",
    r"head\.norm": "vocab_layer_norm",
    r"head\.bias": "vocab_projector.bias",
    r"head\.decoder": "vocab_projector",
    r"head\.pooler": "pre_classifier",
    r"head\.(classifier|token_classifier)": "classifier",
    r"head\.qa_outputs": "qa_outputs",
  },
  # Checkpoints saved without a head lack the prefix.
  legacy={r"^(embeddings|transformer)\.": r"distilbert.\1."},
  ignored={
    r"distilbert\.embeddings\.position_ids": "constants; the model computes them",
    r"vocab_projector\.weight": "tied decoder: a copy of the embeddings",
    r"vocab_(transform|layer_norm|projector)\.|pre_classifier\.": (
      "a head for another task than the one named in config.json"
    ),
  }
  | IGNORED_HEADS,
  tied={
    "vocab_projector.weight": (
      "distilbert.embeddings.word_embeddings.weight",
      "vocab_projector.bias",
    )
  },
)
