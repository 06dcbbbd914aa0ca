"""Writes tests/fixtures: small GPT-2s as transformers saves them, every parameter random, with what transformers computes from them.

Needs the extra `reference`. The scales are such that a wrong epsilon or a swapped name shows: norm weights from 0.5 to 1.5, biases of 0.5,
embeddings so small that the first norm divides by little.
"""
from pathlib import Path
import numpy as np
import torch, transformers

SHAPES = {"gpt2-a": dict(vocab_size=97, n_positions=32, n_embd=24, n_head=3, n_layer=2, n_inner=60),
          "gpt2-b": dict(vocab_size=61, n_positions=19, n_embd=20, n_head=5, n_layer=3, layer_norm_epsilon=1e-3)}

def randomise(model, seed:int) -> None:
  """Gives every parameter random numbers."""
  generator = torch.Generator().manual_seed(seed)
  for name, p in model.named_parameters():
    if name.endswith("bias"): p.data = torch.randn(p.shape, generator=generator) * 0.5
    elif "ln_" in name: p.data = torch.rand(p.shape, generator=generator) + 0.5
    elif "wte" in name or "wpe" in name: p.data = torch.randn(p.shape, generator=generator) * 0.02
    else: p.data = torch.randn(p.shape, generator=generator) * 0.25

def make(name:str, sizes:dict, folder:Path) -> None:
  config = transformers.GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=None, eos_token_id=None)
  model = transformers.GPT2LMHeadModel(config).eval()
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

if __name__ == "__main__":
  for name, sizes in SHAPES.items(): make(name, sizes, Path(__file__).parent / "fixtures")
