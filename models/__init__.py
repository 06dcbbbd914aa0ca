"""The architectures. Only this file lists them all.

RECIPES shows the block of each in one line, and FAMILIES names the module that implements it.
"""

from functools import partial

from tinygrad import Tensor, nn

from layers.activations import gelu, gelu_tanh
from layers.attention import CachedAttention, NoPEAttention, QKNormAttention
from layers.blocks import ParallelBlock
from layers.feedforward import GatedFeedForward
from layers.moe import MixtureOfExperts
from layers.norms import UnbiasedLayerNorm, pre_norm
from models.deberta import DisentangledAttention
from transformer import Block, FeedForward, Linear, MultiHeadAttention, dot_product, post_norm


def attn(c):
  return MultiHeadAttention(c.dim, c.heads)


def t5_attn(c):
  return MultiHeadAttention(c.dim, c.heads, no_bias, similarity=dot_product)


def grouped_attn(c):
  return CachedAttention(c.dim, c.heads, no_bias, kv_heads=c.kv_heads, head_dim=c.head_dim)


def biased_qkv_attn(c):
  attn = CachedAttention(c.dim, c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim)
  attn.out.bias = None
  return attn


def rope_attn(c):
  return CachedAttention(c.dim, c.heads, no_bias)


def nope_attn(c):
  return NoPEAttention(c.dim, c.heads, no_bias, kv_heads=c.kv_heads, head_dim=c.head_dim)


def qk_norm_attn(c):
  norm = partial(nn.RMSNorm, eps=c.eps)
  sizes = {"kv_heads": c.kv_heads, "head_dim": c.head_dim}
  return QKNormAttention(norm, c.dim, c.heads, no_bias, **sizes)


def disentangled_attn(c):
  return DisentangledAttention(c.dim, c.heads, c.terms, c.share_att_key)


def mlp(c, activation, linear=Linear):
  return FeedForward(c.dim, c.ff_dim, activation, linear)


def gated(c, activation):
  return GatedFeedForward(c.dim, c.ff_dim, activation, no_bias)


def experts(c):
  return MixtureOfExperts(c.experts, c.experts_per_token, c.dim, c.ff_dim)


def layer_norm(c):
  return lambda: nn.LayerNorm(c.dim, c.eps)


def unbiased_norm(c):
  return lambda: UnbiasedLayerNorm(c.dim, c.eps)


def rms_norm(c):
  return lambda: nn.RMSNorm(c.dim, c.eps)


no_bias = partial(Linear, bias=False)
relu, silu = Tensor.relu, Tensor.silu

# The block of each architecture, for the sizes of a config c. The decoder blocks of the
# encoder-decoders are shown; their encoder blocks lack cross-attention.
RECIPES = {
  "transformer": lambda c: Block(attn(c), mlp(c, relu), layer_norm(c), post_norm, attn(c)),
  "gpt": lambda c: Block(attn(c), mlp(c, gelu_tanh), layer_norm(c), post_norm),
  "gpt2": lambda c: Block(attn(c), mlp(c, gelu_tanh), layer_norm(c), pre_norm),
  "llama": lambda c: Block(grouped_attn(c), gated(c, silu), rms_norm(c), pre_norm),
  "mistral": lambda c: Block(grouped_attn(c), gated(c, silu), rms_norm(c), pre_norm),
  "qwen2": lambda c: Block(biased_qkv_attn(c), gated(c, silu), rms_norm(c), pre_norm),
  "qwen3": lambda c: Block(qk_norm_attn(c), gated(c, silu), rms_norm(c), pre_norm),
  "smollm3": lambda c: Block(nope_attn(c), gated(c, silu), rms_norm(c), pre_norm),
  "mixtral": lambda c: Block(grouped_attn(c), experts(c), rms_norm(c), pre_norm),
  "gpt_neox": lambda c: ParallelBlock(attn(c), mlp(c, gelu), layer_norm(c), pre_norm),
  "bert": lambda c: Block(attn(c), mlp(c, gelu), layer_norm(c), post_norm),
  "roberta": lambda c: Block(attn(c), mlp(c, gelu), layer_norm(c), post_norm),
  "distilbert": lambda c: Block(attn(c), mlp(c, gelu), layer_norm(c), post_norm),
  "modernbert": lambda c: Block(rope_attn(c), gated(c, gelu), unbiased_norm(c), pre_norm),
  "deberta": lambda c: Block(disentangled_attn(c), mlp(c, gelu), layer_norm(c), post_norm),
  "vit": lambda c: Block(attn(c), mlp(c, gelu), layer_norm(c), pre_norm),
  "t5": lambda c: Block(t5_attn(c), mlp(c, relu, no_bias), rms_norm(c), pre_norm, t5_attn(c)),
  "t5-v1.1": lambda c: Block(t5_attn(c), gated(c, gelu_tanh), rms_norm(c), pre_norm, t5_attn(c)),
  "bart": lambda c: Block(attn(c), mlp(c, gelu), layer_norm(c), post_norm, attn(c)),
  "marian": lambda c: Block(attn(c), mlp(c, silu), layer_norm(c), post_norm, attn(c)),
}

# The model_type of a checkpoint's config.json, and the module and class that implement it.
FAMILIES = {
  "gpt2": "gpt2.GPT2",
  "openai-gpt": "gpt1.GPT",
  "llama": "llama.Llama",
  "mistral": "llama.Llama",
  "mixtral": "mixtral.Mixtral",
  "qwen2": "qwen2.Qwen2",
  "qwen3": "qwen3.Qwen3",
  "smollm3": "smollm3.SmolLM3",
  "gpt_neox": "gpt_neox.GPTNeoX",
  "bert": "bert.Bert",
  "roberta": "roberta.Roberta",
  "camembert": "roberta.Roberta",
  "xlm-roberta": "roberta.Roberta",
  "distilbert": "distilbert.DistilBert",
  "modernbert": "modernbert.ModernBert",
  "deberta-v2": "deberta.Deberta",
  "vit": "vit.ViT",
  "t5": "t5.T5",
  "mt5": "t5.T5",
  "bart": "bart.Bart",
  "marian": "marian.Marian",
}

# Those of an architecture in config.json that differ from those of its model_type.
ARCHITECTURES = {"BartForSequenceClassification": "bart_classifier.BartClassifier"}
