"""Measure whether the memory of long runs grows: `python tests/chaos/memory.py`.

Each workload runs in a process of its own. The table has the resident memory in MB after a quarter
of the workload, after half of it, and at its end. The exit status is 1 if the memory of the second
half grows by more than 16 MB.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from conftest import FIXTURES, ROOT, with_head

MAX_GROWTH = 16  # MB
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", *"abcdefghijklmnopqrstuvwxyz"]
T5_WORDS = ["<pad>", "</s>", "?", *WORDS[5:], *(f"w{i}" for i in range(31))]


def resident_megabytes() -> float:
  """Return the resident memory of this process in MB. Linux only."""
  pages = int(Path("/proc/self/statm").read_text().split()[1])
  return pages * 4096 / 1e6


def texts(count: int) -> Iterator[str]:
  """Yield texts of 1 to 60 words, each of another length than the one before."""
  letters = WORDS[6:]
  for i in range(count):
    yield " ".join(letters[(i + j) % len(letters)] for j in range(1 + 7 * i % 60))


def encoder(folder: Path, head: str):
  """Return the Model of a small BERT."""
  import tinyformer

  with_head("bert-a", head, folder)
  (folder / "vocab.txt").write_text("\n".join(WORDS + [f"w{i}" for i in range(61 - len(WORDS))]))
  return tinyformer.load(folder)


def generate_tokens(folder: Path, count: int) -> Iterator[None]:
  """Generate `count` tokens, 200 per text."""
  import tinyformer

  model = tinyformer.load("tiny")
  for i in range(count // 200):
    model.generate("Once upon a time", 200, seed=i)
    yield


def vary_prompt_lengths(folder: Path, count: int) -> Iterator[None]:
  """Continue prompts of each length from 1 to 240 tokens, with greedy decoding and with samples."""
  import tinyformer

  model = tinyformer.load("tiny")
  for i in range(count):
    model.generate(" the" * (1 + i % 240), 2, temperature=i % 2)
    yield


def fill_rows(folder: Path, count: int) -> Iterator[None]:
  """Fill a mask in each row."""
  model = encoder(folder, "ForMaskedLM")
  for text in texts(count):
    model.fill_mask(f"{text[:40]} [MASK]")
    yield


def embed_rows(folder: Path, count: int) -> Iterator[None]:
  """Embed each row."""
  model = encoder(folder, "Model")
  for text in texts(count):
    model.embed([text[:40]])
    yield


def evaluate_rows(folder: Path, count: int) -> Iterator[None]:
  """Compute the losses of documents of different lengths."""
  import tinyformer
  from tinyformer.tasks.perplexity import token_losses

  model = tinyformer.load("tiny")
  documents = [model.tokenizer.encode(text) for text in texts(count)]
  for _ in token_losses(model.module, documents, 128):
    yield


def inspect_lengths(folder: Path, count: int) -> Iterator[None]:
  """Inspect texts of 60 lengths."""
  import tinyformer

  model = tinyformer.load("tiny")
  for i in range(count):
    tinyformer.inspect(model, " the" * (2 + 7 * i % 60))
    yield


def type_lines(folder: Path, count: int) -> Iterator[None]:
  """Type lines of different lengths into gpt.py -i, which truncates its history now and then."""
  import gpt

  args = ["-m", "tiny", "-i", "-n", "5", "-q"]
  session = gpt.Session(gpt.parse_arguments(args))
  with open(os.devnull, "w") as sys.stdout:
    for line in texts(count):
      gpt.append_line(session, line)
      gpt.print_continuation(session)
      yield
  sys.stdout = sys.__stdout__


def translate_rows(folder: Path, count: int) -> Iterator[None]:
  """Translate texts of different lengths with a small T5."""
  import tinyformer

  for name in ("config.json", "model.safetensors", "generation_config.json"):
    shutil.copy(FIXTURES / "t5-a" / name, folder)
  tokenizer_json = {
    "model": {
      "type": "WordLevel",
      "vocab": {w: i for i, w in enumerate(T5_WORDS)},
      "unk_token": "?",
    },
    "pre_tokenizer": {"type": "WhitespaceSplit"},
  }
  (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json))
  model = tinyformer.load(folder)
  for text in texts(count):
    model.translate(text, max_new_tokens=5, num_beams=1 + len(text) % 2)
    yield


def write_vision_model(folder: Path) -> None:
  """Write a small ViT."""
  for name in ("config.json", "model.safetensors"):
    shutil.copy(FIXTURES / "vit-a" / name, folder)
  preprocessor = {"size": {"height": 12, "width": 12}}
  (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def write_picture(file: Path, number: int) -> None:
  """Write a picture of one color, whose size depends on its number."""
  from PIL import Image

  size = (20 + 7 * number % 300, 20 + 11 * number % 300)
  Image.new("RGB", size, (number % 256, 0, 0)).save(file)


def classify_images(folder: Path, count: int) -> Iterator[None]:
  """Classify pictures of different sizes with a small ViT."""
  import tinyformer

  write_vision_model(folder)
  model = tinyformer.load(folder)
  for i in range(count):
    write_picture(folder / "a.png", i)
    model.classify_image(folder / "a.png")
    yield


def classify_folder(folder: Path, count: int) -> Iterator[None]:
  """Classify the pictures of a folder into a file, as `ask.py --input` does."""
  import ask
  import tinyformer
  from tinyformer.cli import file_run, pictures, result_file, result_formats

  write_vision_model(folder)
  photos, output = folder / "photos", folder / "out.jsonl"
  photos.mkdir()
  for i in range(count):
    write_picture(photos / f"{i}.png", i)
  args = ask.parse_arguments(["-m", str(folder), "--input", str(photos), "--output", str(output)])
  task = ask.row_task(args, tinyformer.load(folder))
  results = result_formats.format_of(output, task.name, task.fields, task.width, ("row", "file"))
  reader = pictures.FolderReader(photos)
  with result_file.ResultFile(output, results, task.settings, photos) as file:
    for _ in file_run.write_results(reader, file, task, file_run.compute_chunks):
      yield
    assert file.rows == count


def train_steps(folder: Path, count: int) -> Iterator[None]:
  """Train a small GPT-2, and evaluate it every 50 steps."""
  import numpy as np

  from models.gpt2 import GPT2, GPT2Config
  from tinyformer.kernels import loss_function, training_parts
  from tinyformer.training.trainer import Trainer

  loss = loss_function()
  model = GPT2(GPT2Config(65, 32, 32, 4, 2), training_parts("float32"))
  trainer = Trainer(model, lambda x, y: loss(model(x), y, smoothing=0))
  rng = np.random.default_rng(0)
  for i in range(count):
    x, y = rng.integers(0, 65, (2, 8, 32)).astype(np.int32)
    trainer.train_step(1e-3, x, y)
    if i % 50 == 0:
      trainer.evaluate(x, y)
    yield


# The workload, and the number of tokens, prompts or rows.
WORKLOADS: dict[str, tuple[Callable[[Path, int], Iterator[None]], int]] = {
  "generate 20,000 tokens": (generate_tokens, 20_000),
  "continue 300 prompts of 240 lengths": (vary_prompt_lengths, 300),
  "fill masks in 10,000 rows": (fill_rows, 10_000),
  "embed 10,000 rows": (embed_rows, 10_000),
  "evaluate 10,000 documents": (evaluate_rows, 10_000),
  "type 300 lines into gpt.py -i": (type_lines, 300),
  "translate 2,000 texts": (translate_rows, 2_000),
  "classify 1,000 pictures of different sizes": (classify_images, 1_000),
  "classify a folder of 2,000 pictures": (classify_folder, 2_000),
  "train for 2,000 steps": (train_steps, 2_000),
  "inspect 240 texts of 60 lengths": (inspect_lengths, 240),
}


def run_workload(name: str, scale: float) -> None:
  """Run a workload and print its memory after a quarter, after half, and at the end."""
  function, count = WORKLOADS[name]
  with tempfile.TemporaryDirectory() as folder:
    megabytes = [resident_megabytes() for _ in function(Path(folder), int(count * scale))]
  quarters = (len(megabytes) // 4, len(megabytes) // 2, len(megabytes) - 1)
  print(*(f"{megabytes[i]:.1f}" for i in quarters))


def measure(name: str, scale: float = 1) -> list[float]:
  """Return the memory of a workload in a process of its own, as `run_workload` prints it."""
  command = [sys.executable, __file__, "--workload", name, "--scale", str(scale)]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  if result.returncode:
    raise RuntimeError(result.stderr)
  return [float(number) for number in result.stdout.split()]


def main() -> int:
  p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  p.add_argument("--scale", type=float, default=1, help="fraction of each workload to run")
  p.add_argument("--workload", help="run a single workload, in this process")
  args = p.parse_args()
  if args.workload:
    run_workload(args.workload, args.scale)
    return 0
  grown = 0
  print("| workload | MB after a quarter | after half | at the end |")
  print("| --- | ---: | ---: | ---: |")
  for name in WORKLOADS:
    quarter, half, end = measure(name, args.scale)
    print(f"| {name} | {quarter:.0f} | {half:.0f} | {end:.0f} |", flush=True)
    grown += end - half > MAX_GROWTH
  return int(grown > 0)


if __name__ == "__main__":
  sys.exit(main())
