"""Convert a GGUF file to a folder as `save_pretrained` of transformers writes it."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tinyformer.checkpoints import gguf_model, gguf_tokenizer, safetensors
from tinyformer.checkpoints.gguf import read_gguf
from tinyformer.files import unfinished_files

ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


def convert_gguf(
  path: str | Path,
  folder: str | Path,
  dtype: str = "float32",
  report: safetensors.Report = lambda *_: None,
) -> None:
  """Convert a GGUF file to a new folder. The folder is written completely or not at all.

  dtype: float32, float16 or bfloat16. Every quantized weight is exact in float32.
  report: called with the number of weights that have been written and the total.
  Raises ValueError if the file is damaged or not supported, FileExistsError if the folder contains
  files, and OSError if there is not enough room.
  """
  folder = Path(os.path.abspath(folder))
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise FileExistsError(f"{folder} exists already: pass the name of a new folder")
  gguf = read_gguf(path)
  files = {
    "config.json": gguf_model.hf_config(gguf) | {"dtype": dtype},
    "tokenizer.json": gguf_tokenizer.tokenizer_json(gguf),
    "tokenizer_config.json": gguf_tokenizer.tokenizer_config(gguf),
    "generation_config.json": gguf_tokenizer.generation_config(gguf),
  }
  tensors = gguf_model.hf_tensors(gguf)
  folder.parent.mkdir(parents=True, exist_ok=True)
  require_room(folder.parent, tensors, dtype)
  part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
  unfinished_files.add(part)
  try:
    part.mkdir()
    for name, content in files.items():
      text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
      (part / name).write_text(text, encoding="utf-8")
    safetensors.copy_safetensors(part / "model.safetensors", tensors, dtype, report)
    for file in part.iterdir():
      with open(file, "rb+") as f:
        os.fsync(f.fileno())
    if folder.exists():
      folder.rmdir()  # it is empty
    os.replace(part, folder)
  finally:
    shutil.rmtree(part, ignore_errors=True)
    unfinished_files.discard(part)


def require_room(parent: Path, tensors: Mapping[str, safetensors.StoredTensor], dtype: str) -> None:
  """Raise OSError if a folder's disk has no room for the tensors."""
  needed = sum(math.prod(t.shape) for t in tensors.values()) * ITEM_SIZES[dtype]
  free = shutil.disk_usage(parent).free
  if free < needed:
    raise OSError(
      f"the weights need {needed / 1e6:,.0f} MB in {dtype}, but {parent} has only "
      f"{free / 1e6:,.0f} MB left"
    )
