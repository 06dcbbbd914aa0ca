"""Convert a GGUF file to a folder as `save_pretrained` of transformers writes it, and back."""

import json
import math
import os
import shutil
from pathlib import Path

from tinyformer.checkpoints import (
  gguf_export,
  gguf_export_tokenizer,
  gguf_model,
  gguf_tokenizer,
  gguf_writer,
  safetensors,
)
from tinyformer.checkpoints.gguf import read_gguf
from tinyformer.files import unfinished_files

ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
# The type of the matrices in a GGUF file for each dtype, and its number in general.file_type.
GGML_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32, "q8_0": 7}


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
  if dtype not in ITEM_SIZES:
    raise ValueError(f"a folder cannot have weights in {dtype}: use {', '.join(ITEM_SIZES)}")
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
  require_room(folder.parent, sum(math.prod(t.shape) for t in tensors.values()), dtype)
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


def convert_folder(
  folder: str | Path,
  path: str | Path,
  dtype: str = "float32",
  report: safetensors.Report = lambda *_: None,
) -> None:
  """Convert a folder to a new GGUF file, which is written completely or not at all.

  dtype: float32, float16, bfloat16 or q8_0, the type of the matrices.
  report: called with the number of weights that have been written and the total.
  Raises ValueError if the folder is damaged, or if llama.cpp has no equivalent of the model or of
  its tokenizer; FileExistsError if the file exists; OSError if there is not enough room.
  """
  folder, path = Path(folder), Path(os.path.abspath(path))
  if path.exists():
    raise FileExistsError(f"{path} exists already: pass the name of a new file")
  metadata, tensors = gguf_export.export_model(folder)
  vocab_size = tensors["token_embd.weight"].shape[0]
  metadata |= gguf_export_tokenizer.export_tokenizer(folder, vocab_size)
  metadata |= {"general.file_type": FILE_TYPES[dtype], "general.quantization_version": 2}
  path.parent.mkdir(parents=True, exist_ok=True)
  require_room(path.parent, sum(math.prod(t.shape) for t in tensors.values()), dtype)
  gguf_writer.write_gguf(path, metadata, tensors, GGML_TYPES[dtype], report)


def require_room(parent: Path, num_weights: int, dtype: str) -> None:
  """Raise OSError if a folder's disk has no room for the weights."""
  needed = num_weights * ITEM_SIZES.get(dtype, 34 / 32)
  free = shutil.disk_usage(parent).free
  if free < needed:
    raise OSError(
      f"the weights need {needed / 1e6:,.0f} MB in {dtype}, but {parent} has only "
      f"{free / 1e6:,.0f} MB left"
    )
