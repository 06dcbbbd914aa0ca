"""Write tests/fixtures: small random models saved by transformers, and their outputs.

Needs the extra `reference`. The scales are chosen so that a wrong epsilon or a swapped name changes
the outputs: norm weights lie in (0.5, 1.5), biases have standard deviation 0.5, and embeddings are
so small that the first norm divides by a small number.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).parent / "fixtures"
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
LLAMAS = {
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
  # transformers ignores the size of the sliding window unless use_sliding_window is true.
  "qwen2-a": transformers.Qwen2Config(**COMMON, num_key_value_heads=2, sliding_window=7),
  "qwen3-a": transformers.Qwen3Config(
    **COMMON, num_key_value_heads=2, head_dim=6, rms_norm_eps=1e-3
  ),
  "smollm3-a": transformers.SmolLM3Config(
    **COMMON,
    num_key_value_heads=2,
    pad_token_id=None,
    rms_norm_eps=1e-3,
    no_rope_layer_interval=2,
    tie_word_embeddings=False,
    rope_parameters={
      "rope_type": "yarn",
      "rope_theta": 1e4,
      "factor": 4.0,
      "original_max_position_embeddings": 16,
    },
  ),
  "gpt_neox-a": transformers.GPTNeoXConfig(
    **COMMON | dict(num_attention_heads=2), layer_norm_eps=1e-3, rotary_pct=0.5
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
  "distilbert-a": transformers.DistilBertConfig(
    vocab_size=61,
    dim=12,
    n_heads=3,
    n_layers=2,
    hidden_dim=20,
    max_position_embeddings=32,
    id2label=ENCODER["id2label"],
  ),
  "modernbert-a": transformers.ModernBertConfig(
    vocab_size=61,
    hidden_size=12,
    num_attention_heads=3,
    num_hidden_layers=4,
    intermediate_size=20,
    max_position_embeddings=32,
    local_attention=6,
    norm_eps=1e-3,
    pad_token_id=0,
    id2label=ENCODER["id2label"],
  ),
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

# What T5 and BART have in common. All sizes that can differ within a model do.
PAIR = dict(vocab_size=61, d_model=12, decoder_start_token_id=0)
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
# Each value: a config, the settings of generation_config.json, and a seed. The seeds were chosen so
# that the model generates different texts of many tokens for the two sources.
ENCODER_DECODERS = {
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
  """Fill every parameter with random numbers, and the buffer final_logits_bias of BART.

  Marian's position embeddings are excluded, because they are computed.
  """
  generator = torch.Generator().manual_seed(seed)
  buffers = [(n, b) for n, b in model.named_buffers() if n == "final_logits_bias"]
  for name, p in [*model.named_parameters(), *buffers]:
    if "embed_positions" in name and not p.requires_grad:
      continue
    if name.endswith("bias"):
      p.data = torch.randn(p.shape, generator=generator) * 0.5
    elif "ln_" in name or "norm" in name.lower():
      p.data = torch.rand(p.shape, generator=generator) + 0.5
    elif "wte" in name or "wpe" in name or ("embed" in name and p.ndim == 2):
      p.data = torch.randn(p.shape, generator=generator) * 0.02
    else:
      # Larger weights in cross-attention make the output depend visibly on the source.
      scale = 1.0 if "encoder_attn" in name else 0.25
      p.data = torch.randn(p.shape, generator=generator) * scale


def random_ids(low: int, high: int, shape: tuple[int, int]) -> torch.Tensor:
  return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(1))


def save_expected(folder: Path, arrays: dict) -> None:
  """Write the inputs and outputs that the tests compare with."""
  np.savez_compressed(folder / "expected.npz", **arrays)


def save_causal_lm(config, folder: Path):
  """Save a random decoder-only model and return it."""
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  randomise(model, seed=len(folder.name))
  model.save_pretrained(folder)
  (folder / "generation_config.json").unlink(missing_ok=True)
  return model


def make_gpt(name: str, kind: type, sizes: dict, folder: Path) -> None:
  """Write a GPT or GPT-2 with its logits, hidden states and gradients."""
  config = kind(
    **sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=None, eos_token_id=None
  )
  model = save_causal_lm(config, folder / name)
  ids = random_ids(0, sizes["vocab_size"], (2, 13))
  out = model(ids, labels=ids, output_hidden_states=True)
  out.loss.backward()
  # The embeddings, the output of each block, and the last one after the final norm.
  hidden = {f"hidden.{i}": h.detach().numpy() for i, h in enumerate(out.hidden_states)}
  grads = {f"grad.{n}": p.grad.numpy() for n, p in model.named_parameters()}
  outputs = {"ids": ids, "loss": out.loss.detach(), "logits": out.logits.detach()}
  save_expected(folder / name, outputs | hidden | grads)


def make_llama(name: str, config, folder: Path) -> None:
  """Write a model of Llama's family with its logits."""
  model = save_causal_lm(config, folder / name)
  ids = random_ids(0, config.vocab_size, (2, 40))
  save_expected(folder / name, {"ids": ids, "logits": model(ids).logits.detach()})


def make_vit(name: str, folder: Path) -> None:
  """Write a ViT with its outputs for images of its own size and of another size.

  The positions are interpolated for the other size.
  """
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
    out = model.vit(pixels, output_hidden_states=True)
    outputs = {
      "pixels": pixels,
      "logits": model(pixels).logits,
      "wide": wide,
      "wide_logits": model(wide, interpolate_pos_encoding=True).logits,
      "last": out.last_hidden_state,
    }
  hidden = {f"hidden.{i}": h for i, h in enumerate(out.hidden_states)}
  save_expected(folder / name, outputs | hidden)


def encoders(config, seed: int) -> dict:
  """Return a random model with each head in HEADS, by that name.

  Parameters that two of the models have in common are equal.
  """
  architecture = transformers.AutoModel.from_config(config).__class__.__name__.removesuffix("Model")
  start_end = {"id2label": {0: "start", 1: "end"}, "label2id": None}
  qa_config = type(config)(**config.to_dict() | start_end)
  models = {}
  for head in HEADS:
    head_config = qa_config if head == "ForQuestionAnswering" else config
    models[head] = getattr(transformers, architecture + head)(head_config).eval()
  for model in models.values():
    randomise(model, seed)
  first = models["ForSequenceClassification"]
  for head, model in models.items():
    source = first.base_model if head == "Model" else first
    own = model.state_dict()
    # ModernBERT's classifiers have the same name for all tasks, but not the same shape.
    shared = {n: t for n, t in source.state_dict().items() if n in own and own[n].shape == t.shape}
    model.load_state_dict(shared, strict=False)
  return models


def num_segments(config) -> int:
  """Return the number of segment embeddings of an encoder."""
  return getattr(config, "type_vocab_size", 0)


def head_output(out, head: str) -> torch.Tensor:
  """Return the logits, or the last hidden state of a bare model."""
  if head == "ForQuestionAnswering":
    return torch.stack([out.start_logits, out.end_logits], -1)
  return out[0]


def make_encoder(name: str, config, folder: Path) -> None:
  """Write one checkpoint with the tensors of all heads, and the output of each head."""
  models = encoders(config, seed=len(name))
  if config.model_type == "modernbert":
    # Its classifier has the name of that for other tasks.
    del models["ForQuestionAnswering"]
  models["ForMaskedLM"].save_pretrained(folder / name)
  tensors: dict = {}
  for head, model in models.items():
    # The names in the checkpoint of a bare model lack the prefix.
    if head == "Model":
      continue
    with tempfile.TemporaryDirectory() as saved:
      model.save_pretrained(saved)
      tensors = load_file(Path(saved) / "model.safetensors") | tensors
  save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
  ids = random_ids(3, config.vocab_size, (3, 11))
  attention_mask = torch.ones_like(ids)
  ids[1, 7:] = config.pad_token_id
  attention_mask[1, 7:] = 0
  segments = (torch.arange(11) > 4).long().expand(3, 11) % max(1, num_segments(config))
  batch = dict(input_ids=ids, attention_mask=attention_mask)
  if num_segments(config):
    batch["token_type_ids"] = segments
  outputs = {head: head_output(model(**batch), head).detach() for head, model in models.items()}
  masked_lm = models["ForMaskedLM"]
  loss = masked_lm(**batch, labels=torch.where(attention_mask.bool(), ids, -100)).loss
  loss.backward()
  grads = {
    f"grad.{n}": p.grad
    for n, p in masked_lm.named_parameters()
    if p.grad is not None and ("layer.0" in n or "layers.1." in n or "embedding" in n)
  }
  inputs = {"ids": ids, "keep": attention_mask, "segments": segments}
  save_expected(folder / name, inputs | {"loss": loss.detach()} | outputs | grads)


def pair(config, generation_settings: dict, seed: int):
  """Return a random encoder-decoder with the given settings in its generation_config.json."""
  model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
  if getattr(config, "scale_decoder_outputs", True) is False:
    # transformers 5 ties the head; untie it.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
  randomise(model, seed)
  for key, value in ({"max_length": 24} | generation_settings).items():
    setattr(model.generation_config, key, value)
  return model


def make_encoder_decoder(
  name: str, config, generation_settings: dict, seed: int, folder: Path
) -> None:
  """Write an encoder-decoder with its logits and its greedy and beam-search ids."""
  model = pair(config, generation_settings, seed)
  model.save_pretrained(folder / name)
  generator = torch.Generator().manual_seed(1)
  source = torch.randint(3, config.vocab_size, (2, 14), generator=generator)
  target = torch.randint(3, config.vocab_size, (2, 11), generator=generator)
  attention_mask = torch.ones(2, 14, dtype=torch.long)
  attention_mask[1, 9:] = 0
  with torch.no_grad():
    out = model(input_ids=source, attention_mask=attention_mask, decoder_input_ids=target)
    greedy = model.generate(source, attention_mask=attention_mask, num_beams=1)
    beams = model.generate(source, attention_mask=attention_mask)
  inputs = {"source": source, "keep": attention_mask, "target": target}
  save_expected(folder / name, inputs | {"logits": out.logits, "greedy": greedy, "beams": beams})


def bart_classifier(seed: int, **settings):
  """Return a random BART with a classification head."""
  labels = ["contradiction", "neutral", "entailment", "other"]
  config = transformers.BartConfig(
    **BART | {"id2label": dict(enumerate(labels)), "decoder_start_token_id": 3} | settings
  )
  model = transformers.BartForSequenceClassification(config).eval()
  randomise(model, seed)
  return model


def classified_texts(config) -> dict[str, torch.Tensor]:
  """Return three pairs of texts. Each has two eos tokens, and two of the pairs are padded."""
  ids = random_ids(5, config.vocab_size, (3, 14))
  ids[:, 5] = config.eos_token_id
  attention_mask = torch.ones_like(ids)
  for row, length in enumerate((14, 9, 7)):
    ids[row, length - 1] = config.eos_token_id
    ids[row, length:] = config.pad_token_id
    attention_mask[row, length:] = 0
  return {"input_ids": ids, "attention_mask": attention_mask}


def make_bart_classifier(name: str, folder: Path) -> None:
  """Write a BART with a classification head, and its logits."""
  model = bart_classifier(seed=1)
  model.save_pretrained(folder / name)
  (folder / name / "generation_config.json").unlink(missing_ok=True)
  inputs = classified_texts(model.config)
  with torch.no_grad():
    logits = model(**inputs).logits
  ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
  segments = torch.zeros_like(ids)
  save_expected(
    folder / name, {"ids": ids, "keep": attention_mask, "segments": segments, "logits": logits}
  )


def main(folder: Path = FIXTURES) -> None:
  for name, sizes in SHAPES.items():
    make_gpt(name, transformers.GPT2Config, sizes, folder)
  make_gpt("gpt1-a", transformers.OpenAIGPTConfig, FIRST, folder)
  make_vit("vit-a", folder)
  for name, config in LLAMAS.items():
    make_llama(name, config, folder)
  for name, config in ENCODERS.items():
    make_encoder(name, config, folder)
  for name, (config, generation_settings, seed) in ENCODER_DECODERS.items():
    make_encoder_decoder(name, config, generation_settings, seed, folder)
  make_bart_classifier("bart_classifier-a", folder)


if __name__ == "__main__":
  main()
