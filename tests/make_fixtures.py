"""Writes tests/fixtures: small models as transformers saves them, every parameter random, with what transformers computes from them.

Needs the extra `reference`. The scales are such that a wrong epsilon or a swapped name shows: norm weights from 0.5 to 1.5, biases of 0.5,
embeddings so small that the first norm divides by little.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

SHAPES = {
  "gpt2-a": dict(vocab_size=97, n_positions=32, n_embd=24, n_head=3, n_layer=2, n_inner=60),
  "gpt2-b": dict(
    vocab_size=61, n_positions=19, n_embd=20, n_head=5, n_layer=3, layer_norm_epsilon=1e-3
  ),
}

FIRST = dict(vocab_size=61, n_positions=23, n_embd=16, n_head=4, n_layer=2, layer_norm_epsilon=1e-3)

COMMON = dict(
  vocab_size=61,
  hidden_size=16,
  num_attention_heads=4,
  num_hidden_layers=2,
  intermediate_size=24,
  max_position_embeddings=64,
  bos_token_id=None,
  eos_token_id=None,
)
OTHERS = {
  "llama-a": transformers.LlamaConfig(
    **COMMON,
    num_key_value_heads=2,
    rms_norm_eps=1e-3,
    rope_parameters={
      "rope_type": "llama3",
      "rope_theta": 5e5,
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 16,
    },
  ),
  "mistral-a": transformers.MistralConfig(
    **COMMON, num_key_value_heads=1, head_dim=6, sliding_window=7
  ),
  "mixtral-a": transformers.MixtralConfig(
    **COMMON, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, rms_norm_eps=1e-3
  ),
}

HEADS = (
  "ForMaskedLM",
  "ForSequenceClassification",
  "ForTokenClassification",
  "ForQuestionAnswering",
  "Model",
)
ENCODER = dict(
  vocab_size=61,
  hidden_size=12,
  num_attention_heads=3,
  num_hidden_layers=2,
  intermediate_size=20,
  max_position_embeddings=32,
  id2label={0: "calm", 1: "glad", 2: "sad", 3: "wry"},
)
RELATIVE = dict(relative_attention=True, position_biased_input=False, pos_att_type="p2c|c2p")
ENCODERS = {
  "bert-a": transformers.BertConfig(**ENCODER),
  "roberta-a": transformers.RobertaConfig(**ENCODER, type_vocab_size=1, layer_norm_eps=1e-5),
  "deberta-a": transformers.DebertaV2Config(
    **ENCODER, **RELATIVE, position_buckets=4, share_att_key=True, norm_rel_ebd="layer_norm"
  ),
  "deberta-b": transformers.DebertaV2Config(
    **ENCODER,
    **RELATIVE,
    max_relative_positions=5,
    conv_kernel_size=3,
    conv_act="gelu",
    legacy=False,
  ),
}

PAIR = dict(
  vocab_size=61, d_model=12, decoder_start_token_id=0
)  # T5's and BART's: everything else that can differ does
T5 = dict(
  **PAIR,
  d_kv=5,
  num_heads=3,
  d_ff=20,
  num_layers=3,
  num_decoder_layers=2,
  relative_attention_num_buckets=8,
  relative_attention_max_distance=12,
  layer_norm_epsilon=1e-3,
)
BART = dict(
  **PAIR,
  encoder_layers=3,
  decoder_layers=2,
  encoder_attention_heads=3,
  decoder_attention_heads=2,
  encoder_ffn_dim=20,
  decoder_ffn_dim=28,
  max_position_embeddings=40,
  pad_token_id=1,
  eos_token_id=2,
)
PAIRS = {  # config, the words of generation_config.json, and a seed with which two sources are answered by two texts of many tokens
  "t5-a": (transformers.T5Config(**T5), dict(num_beams=3, no_repeat_ngram_size=3), 1),
  "t5-b": (
    transformers.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    dict(num_beams=2, early_stopping=True, length_penalty=0.6),
    27,
  ),
  "bart-a": (
    transformers.BartConfig(**BART),
    dict(
      num_beams=4,
      no_repeat_ngram_size=2,
      min_length=9,
      length_penalty=2.0,
      early_stopping="never",
      forced_bos_token_id=4,
      forced_eos_token_id=2,
    ),
    9,
  ),
  "marian-a": (
    transformers.MarianConfig(
      **BART | dict(scale_embedding=True, activation_function="swish", encoder_attention_heads=4)
    ),
    dict(
      num_beams=3, bad_words_ids=[[0], [9, 11]], renormalize_logits=True, no_repeat_ngram_size=2
    ),
    4,
  ),
}


def randomise(model, seed: int) -> None:
  """Gives every parameter random numbers, and BART's bias of the logits, which is none; not Marian's positions, which are computed."""
  generator = torch.Generator().manual_seed(seed)
  for name, p in [
    *model.named_parameters(),
    *((n, b) for n, b in model.named_buffers() if n == "final_logits_bias"),
  ]:
    if "embed_positions" in name and not p.requires_grad:
      continue
    if name.endswith("bias"):
      p.data = torch.randn(p.shape, generator=generator) * 0.5
    elif "ln_" in name or "norm" in name.lower():
      p.data = torch.rand(p.shape, generator=generator) + 0.5
    elif "wte" in name or "wpe" in name or ("embed" in name and p.ndim == 2):
      p.data = torch.randn(p.shape, generator=generator) * 0.02
    else:
      p.data = torch.randn(p.shape, generator=generator) * (
        1.0 if "encoder_attn" in name else 0.25
      )  # a source should show in what is made of it


def make(name: str, kind: type, sizes: dict, folder: Path) -> None:
  config = kind(
    **sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=None, eos_token_id=None
  )
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  randomise(model, seed=len(name))
  model.save_pretrained(folder / name)
  (folder / name / "generation_config.json").unlink(missing_ok=True)
  ids = torch.randint(0, sizes["vocab_size"], (2, 13), generator=torch.Generator().manual_seed(1))
  out = model(ids, labels=ids, output_hidden_states=True)
  out.loss.backward()
  hidden = {
    f"hidden.{i}": h for i, h in enumerate(out.hidden_states)
  }  # embeddings, each block, and the last after the final norm
  grads = {f"grad.{n}": p.grad for n, p in model.named_parameters()}
  np.savez_compressed(
    folder / name / "expected.npz",
    ids=ids,
    loss=out.loss.detach(),
    logits=out.logits.detach(),
    **{n: t.detach().numpy() for n, t in (hidden | grads).items()},
  )


def make_other(name: str, config, folder: Path) -> None:
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  randomise(model, seed=len(name))
  model.save_pretrained(folder / name)
  (folder / name / "generation_config.json").unlink(missing_ok=True)
  ids = torch.randint(0, config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
  np.savez_compressed(folder / name / "expected.npz", ids=ids, logits=model(ids).logits.detach())


def make_vit(name: str, folder: Path) -> None:
  """With what it computes from pictures of its own size and, its positions interpolated, of another."""
  config = transformers.ViTConfig(
    image_size=12,
    patch_size=4,
    hidden_size=18,
    num_attention_heads=3,
    num_hidden_layers=2,
    intermediate_size=30,
    layer_norm_eps=1e-3,
    id2label={0: "dot", 1: "line", 2: "field", 3: "none", 4: "cross"},
  )
  model = transformers.ViTForImageClassification(config).eval()
  randomise(model, seed=len(name))
  model.save_pretrained(folder / name)
  pixels, wide = (
    torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for shape in ((2, 3, 12, 12), (2, 3, 20, 17))
  )
  with torch.no_grad():
    hidden, stretched = (
      model.vit(pixels, output_hidden_states=True),
      model(wide, interpolate_pos_encoding=True),
    )
    np.savez_compressed(
      folder / name / "expected.npz",
      pixels=pixels,
      logits=model(pixels).logits,
      wide=wide,
      wide_logits=stretched.logits,
      last=hidden.last_hidden_state,
      **{f"hidden.{i}": h for i, h in enumerate(hidden.hidden_states)},
    )


def encoders(config, seed: int) -> dict:
  """A model of each of HEADS, by that name, every parameter random, and what two of them have the same in both."""
  architecture = transformers.AutoModel.from_config(config).__class__.__name__.removesuffix("Model")
  spans = type(config)(**config.to_dict() | {"id2label": {0: "start", 1: "end"}, "label2id": None})
  models = {
    head: getattr(transformers, architecture + head)(
      spans if head == "ForQuestionAnswering" else config
    ).eval()
    for head in HEADS
  }
  for model in models.values():
    randomise(model, seed)
  first = models["ForSequenceClassification"]
  for head, model in models.items():
    model.load_state_dict(
      (first.base_model if head == "Model" else first).state_dict(), strict=False
    )
  return models


def make_encoder(name: str, config, folder: Path) -> None:
  """One file for all heads, each of which leaves behind what the others read."""
  models = encoders(config, seed=len(name))
  models["ForMaskedLM"].save_pretrained(folder / name)
  tensors: dict = {}
  for head, model in models.items():
    with tempfile.TemporaryDirectory() as saved:
      model.save_pretrained(saved)
      if head != "Model":
        tensors = (
          load_file(Path(saved) / "model.safetensors") | tensors
        )  # saved alone, its names lack the prefix
  save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
  ids = torch.randint(3, config.vocab_size, (3, 11), generator=torch.Generator().manual_seed(1))
  keep = torch.ones_like(ids)
  ids[1, 7:], keep[1, 7:] = config.pad_token_id, 0
  given = dict(
    input_ids=ids,
    attention_mask=keep,
    token_type_ids=(torch.arange(11) > 4).long().expand(3, 11) % max(1, config.type_vocab_size),
  )
  expected = {}
  for head, model in models.items():
    out = model(**given)
    expected[head] = (
      torch.stack([out.start_logits, out.end_logits], -1)
      if head == "ForQuestionAnswering"
      else out[0]
    )
  loss = models["ForMaskedLM"](**given, labels=torch.where(keep.bool(), ids, -100)).loss
  loss.backward()
  grads = {
    f"grad.{n}": p.grad
    for n, p in models["ForMaskedLM"].named_parameters()
    if p.grad is not None and ("layer.0" in n or "embedding" in n)
  }
  np.savez_compressed(
    folder / name / "expected.npz",
    ids=ids,
    keep=keep,
    segments=given["token_type_ids"],
    loss=loss.detach(),
    **{n: t.detach().numpy() for n, t in (expected | grads).items()},
  )


def pair(config, words: dict, seed: int):
  """An encoder-decoder that writes as generation_config.json's words say."""
  model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
  if getattr(config, "scale_decoder_outputs", True) is False:
    model.lm_head.weight = torch.nn.Parameter(
      model.lm_head.weight.detach().clone()
    )  # transformers 5 ties it
  randomise(model, seed)
  for word, value in ({"max_length": 24} | words).items():
    setattr(model.generation_config, word, value)
  return model


def make_pair(name: str, config, words: dict, seed: int, folder: Path) -> None:
  model = pair(config, words, seed)
  model.save_pretrained(folder / name)
  draw, keep = torch.Generator().manual_seed(1), torch.ones(2, 14, dtype=torch.long)
  source, target = (torch.randint(3, config.vocab_size, (2, T), generator=draw) for T in (14, 11))
  keep[1, 9:] = 0
  with torch.no_grad():
    logits = model(input_ids=source, attention_mask=keep, decoder_input_ids=target).logits
    greedy, beams = (
      model.generate(source, attention_mask=keep, **n) for n in ({"num_beams": 1}, {})
    )
  np.savez_compressed(
    folder / name / "expected.npz",
    source=source,
    keep=keep,
    target=target,
    logits=logits,
    greedy=greedy,
    beams=beams,
  )


if __name__ == "__main__":
  for name, sizes in SHAPES.items():
    make(name, transformers.GPT2Config, sizes, Path(__file__).parent / "fixtures")
  make("gpt1-a", transformers.OpenAIGPTConfig, FIRST, Path(__file__).parent / "fixtures")
  make_vit("vit-a", Path(__file__).parent / "fixtures")
  for name, config in OTHERS.items():
    make_other(name, config, Path(__file__).parent / "fixtures")
  for name, config in ENCODERS.items():
    make_encoder(name, config, Path(__file__).parent / "fixtures")
  for name, parts in PAIRS.items():
    make_pair(name, *parts, Path(__file__).parent / "fixtures")
