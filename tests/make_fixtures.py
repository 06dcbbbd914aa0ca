"""Writes tests/fixtures: small models as transformers saves them, every parameter random, with what transformers computes from them.

Needs the extra `reference`. The scales are such that a wrong epsilon or a swapped name shows: norm weights from 0.5 to 1.5, biases of 0.5,
embeddings so small that the first norm divides by little.
"""
import tempfile
from pathlib import Path
import numpy as np
import torch, transformers
from safetensors.torch import load_file, save_file

SHAPES = {"gpt2-a": dict(vocab_size=97, n_positions=32, n_embd=24, n_head=3, n_layer=2, n_inner=60),
          "gpt2-b": dict(vocab_size=61, n_positions=19, n_embd=20, n_head=5, n_layer=3, layer_norm_epsilon=1e-3)}

FIRST = dict(vocab_size=61, n_positions=23, n_embd=16, n_head=4, n_layer=2, layer_norm_epsilon=1e-3)

COMMON = dict(vocab_size=61, hidden_size=16, num_attention_heads=4, num_hidden_layers=2, intermediate_size=24, max_position_embeddings=64, bos_token_id=None, eos_token_id=None)
OTHERS = {"llama-a": transformers.LlamaConfig(**COMMON, num_key_value_heads=2, rms_norm_eps=1e-3, rope_parameters={
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),
          "mistral-a": transformers.MistralConfig(**COMMON, num_key_value_heads=1, head_dim=6, sliding_window=7),
          "mixtral-a": transformers.MixtralConfig(**COMMON, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, rms_norm_eps=1e-3)}

HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model")
ENCODER = dict(vocab_size=61, hidden_size=12, num_attention_heads=3, num_hidden_layers=2, intermediate_size=20, max_position_embeddings=32,
               id2label={0: "calm", 1: "glad", 2: "sad", 3: "wry"})
RELATIVE = dict(relative_attention=True, position_biased_input=False, pos_att_type="p2c|c2p")
ENCODERS = {"bert-a": transformers.BertConfig(**ENCODER), "roberta-a": transformers.RobertaConfig(**ENCODER, type_vocab_size=1, layer_norm_eps=1e-5),
            "deberta-a": transformers.DebertaV2Config(**ENCODER, **RELATIVE, position_buckets=4, share_att_key=True, norm_rel_ebd="layer_norm"),
            "deberta-b": transformers.DebertaV2Config(**ENCODER, **RELATIVE, max_relative_positions=5, conv_kernel_size=3, conv_act="gelu", legacy=False)}

def randomise(model, seed:int) -> None:
  """Gives every parameter random numbers."""
  generator = torch.Generator().manual_seed(seed)
  for name, p in model.named_parameters():
    if name.endswith("bias"): p.data = torch.randn(p.shape, generator=generator) * 0.5
    elif "ln_" in name or "norm" in name.lower(): p.data = torch.rand(p.shape, generator=generator) + 0.5
    elif "wte" in name or "wpe" in name or "embed" in name and p.ndim == 2: p.data = torch.randn(p.shape, generator=generator) * 0.02
    else: p.data = torch.randn(p.shape, generator=generator) * 0.25

def make(name:str, kind:type, sizes:dict, folder:Path) -> None:
  config = kind(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=None, eos_token_id=None)
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  randomise(model, seed=len(name))
  model.save_pretrained(folder / name)
  (folder / name / "generation_config.json").unlink(missing_ok=True)
  ids = torch.randint(0, sizes["vocab_size"], (2, 13), generator=torch.Generator().manual_seed(1))
  out = model(ids, labels=ids, output_hidden_states=True)
  out.loss.backward()
  hidden = {f"hidden.{i}": h for i, h in enumerate(out.hidden_states)}   # embeddings, each block, and the last after the final norm
  grads = {f"grad.{n}": p.grad for n, p in model.named_parameters()}
  np.savez_compressed(folder / name / "expected.npz", ids=ids, loss=out.loss.detach(), logits=out.logits.detach(),
                      **{n: t.detach().numpy() for n, t in (hidden | grads).items()})

def make_other(name:str, config, folder:Path) -> None:
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  randomise(model, seed=len(name))
  model.save_pretrained(folder / name)
  (folder / name / "generation_config.json").unlink(missing_ok=True)
  ids = torch.randint(0, config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
  np.savez_compressed(folder / name / "expected.npz", ids=ids, logits=model(ids).logits.detach())

def make_vit(name:str, folder:Path) -> None:
  """With what it computes from pictures of its own size and, its positions interpolated, of another."""
  config = transformers.ViTConfig(image_size=12, patch_size=4, hidden_size=18, num_attention_heads=3, num_hidden_layers=2, intermediate_size=30,
                                  layer_norm_eps=1e-3, id2label={0: "dot", 1: "line", 2: "field", 3: "none", 4: "cross"})
  model = transformers.ViTForImageClassification(config).eval()
  randomise(model, seed=len(name))
  model.save_pretrained(folder / name)
  pixels, wide = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((2, 3, 12, 12), (2, 3, 20, 17)))
  with torch.no_grad():
    hidden, stretched = model.vit(pixels, output_hidden_states=True), model(wide, interpolate_pos_encoding=True)
    np.savez_compressed(folder / name / "expected.npz", pixels=pixels, logits=model(pixels).logits, wide=wide, wide_logits=stretched.logits,
                        last=hidden.last_hidden_state, **{f"hidden.{i}": h for i, h in enumerate(hidden.hidden_states)})

def encoders(config, seed:int) -> dict:
  """A model of each of HEADS, by that name, every parameter random, and what two of them have the same in both."""
  architecture = transformers.AutoModel.from_config(config).__class__.__name__.removesuffix("Model")
  spans = type(config)(**config.to_dict() | {"id2label": {0: "start", 1: "end"}, "label2id": None})
  models = {head: getattr(transformers, architecture + head)(spans if head == "ForQuestionAnswering" else config).eval() for head in HEADS}
  for model in models.values(): randomise(model, seed)
  first = models["ForSequenceClassification"]
  for head, model in models.items(): model.load_state_dict((first.base_model if head == "Model" else first).state_dict(), strict=False)
  return models

def make_encoder(name:str, config, folder:Path) -> None:
  """One file for all heads, each of which leaves behind what the others read."""
  models = encoders(config, seed=len(name))
  models["ForMaskedLM"].save_pretrained(folder / name)
  tensors:dict = {}
  for head, model in models.items():
    with tempfile.TemporaryDirectory() as saved:
      model.save_pretrained(saved)
      if head != "Model": tensors = load_file(Path(saved) / "model.safetensors") | tensors   # saved alone, its names lack the prefix
  save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
  ids = torch.randint(3, config.vocab_size, (3, 11), generator=torch.Generator().manual_seed(1))
  keep = torch.ones_like(ids)
  ids[1, 7:], keep[1, 7:] = config.pad_token_id, 0
  given = dict(input_ids=ids, attention_mask=keep, token_type_ids=(torch.arange(11) > 4).long().expand(3, 11) % max(1, config.type_vocab_size))
  expected = {}
  for head, model in models.items():
    out = model(**given)
    expected[head] = torch.stack([out.start_logits, out.end_logits], -1) if head == "ForQuestionAnswering" else out[0]
  loss = models["ForMaskedLM"](**given, labels=torch.where(keep.bool(), ids, -100)).loss
  loss.backward()
  grads = {f"grad.{n}": p.grad for n, p in models["ForMaskedLM"].named_parameters() if p.grad is not None and ("layer.0" in n or "embedding" in n)}
  np.savez_compressed(folder / name / "expected.npz", ids=ids, keep=keep, segments=given["token_type_ids"], loss=loss.detach(),
                      **{n: t.detach().numpy() for n, t in (expected | grads).items()})

if __name__ == "__main__":
  for name, sizes in SHAPES.items(): make(name, transformers.GPT2Config, sizes, Path(__file__).parent / "fixtures")
  make("gpt1-a", transformers.OpenAIGPTConfig, FIRST, Path(__file__).parent / "fixtures")
  make_vit("vit-a", Path(__file__).parent / "fixtures")
  for name, config in OTHERS.items(): make_other(name, config, Path(__file__).parent / "fixtures")
  for name, config in ENCODERS.items(): make_encoder(name, config, Path(__file__).parent / "fixtures")
