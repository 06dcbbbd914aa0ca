"""Compute the results that tests/test_frozen.py compares with tests/frozen.json.

`python tests/frozen.py` overwrites frozen.json. The file was written at commit 1097acd, before the
repository was reorganized. A refactoring must not change it. Since then one value has changed: the
probabilities of `ask.py`'s answers, which now take "no answer" into account.
"""

import base64
import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
from conftest import FIXTURES, ROOT, with_head
from test_ask import WORDS, unigram
from tinygrad import Tensor, nn

import ask
import attend
import evaluate
import gpt
from tinyformer import checkpoints
from tinyformer.generation import Engine, generate, generate_seq2seq
from tinyformer.generation.generation_config import GenerationConfig

FROZEN = Path(__file__).parent / "frozen.json"
DECODERS = ["gpt1-a", "gpt2-a", "gpt2-b", "llama-a", "mistral-a", "mixtral-a"]
ENCODERS = ["bert-a", "deberta-a", "deberta-b", "roberta-a"]
ENCODER_DECODERS = ["bart-a", "marian-a", "t5-a", "t5-b"]
FAMILIES = [*DECODERS, *ENCODERS, *ENCODER_DECODERS, "vit-a"]


def numbers(array) -> list[float]:
  """Return an array's values as a flat list, rounded to six significant digits."""
  return [float(f"{x:.6g}") for x in np.asarray(array, np.float64).ravel()]


def inputs(case: str) -> list[Tensor]:
  """Return a fixture's inputs, in the order in which its model takes them."""
  expected = np.load(FIXTURES / case / "expected.npz")
  if case in DECODERS:
    names = ["ids"]
  elif case in ENCODERS:
    names = ["ids", "keep", "segments"]
  elif case in ENCODER_DECODERS:
    names = ["source", "target", "keep"]
  else:
    names = ["pixels"]
  return [Tensor(expected[name][:2]) for name in names]


def logits(case: str) -> list[float]:
  """Return every third logit of a fixture's model."""
  return numbers(checkpoints.load_module(FIXTURES / case)(*inputs(case)).numpy().ravel()[::3])


def gradients(case: str) -> list[list[float]]:
  """Return the mean absolute value of each parameter's gradient, and a random projection of it.

  The loss is the sum of the logits times fixed random numbers. The list is sorted, so it does not
  depend on the parameters' names or order.
  """
  model = checkpoints.load_module(FIXTURES / case)
  parameters = nn.state.get_parameters(model)
  output = model(*inputs(case))
  weights = np.random.default_rng(0).standard_normal(output.shape).astype(np.float32)
  results = (output * Tensor(weights)).sum().gradient(*parameters)
  summaries = []
  for gradient in results:
    values = gradient.numpy().astype(np.float64).ravel()
    projection = np.random.default_rng(1).standard_normal(values.size)
    summaries.append(numbers([np.abs(values).mean(), values @ projection]))
  return sorted(summaries)


def greedy(case: str) -> list[int]:
  """Return 12 greedy token ids of a decoder or an encoder-decoder."""
  model = checkpoints.load_module(FIXTURES / case)
  if case in ENCODER_DECODERS:
    settings = GenerationConfig.read(FIXTURES / case)._replace(num_beams=1)
    return generate_seq2seq(model, [5, 9, 3, 7, 11], settings, 12)
  return [tokens[0] for tokens in generate(Engine(model), [5, 9, 3, 7], 12, temperature=0)]


def stdout(main, *argv) -> str:
  """Return what a command writes to standard output."""
  captured = io.StringIO()
  with contextlib.redirect_stdout(captured), contextlib.redirect_stderr(io.StringIO()):
    main([str(argument) for argument in argv])
  return captured.getvalue()


def gpt_command(*argv) -> str:
  return stdout(gpt.main, "-m", ROOT / "weights" / "tiny", "-q", *argv)


def ask_command(head: str, folder: Path, *argv) -> str:
  """Return what ask.py prints for a small BERT with the given head, or for a small T5."""
  if head == "t5":
    shutil.copytree(FIXTURES / "t5-a", folder, dirs_exist_ok=True)
    unigram(folder, 61)
  else:
    with_head("bert-a", head, folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  return stdout(ask.main, "-m", folder, "-q", *argv)


def evaluate_command(folder: Path, *argv) -> list[float]:
  """Return the numbers that evaluate.py prints for a short text."""
  text = folder / "text.txt"
  text.write_text("The old man took his hat and went out.\n" * 9)
  printed = stdout(evaluate.main, text, "-m", ROOT / "weights" / "tiny", *argv)
  return [float(number) for number in re.findall(r"\d+\.\d+", printed)]


def flatten(value) -> list[float]:
  """Return all numbers of a JSON value, in order."""
  if isinstance(value, bool) or value is None or isinstance(value, str):
    return []
  if isinstance(value, (int, float)):
    return [float(value)]
  items = list(value.values()) if isinstance(value, dict) else value
  return [number for item in items for number in flatten(item)]


def page_data(folder: Path) -> list[float]:
  """Return the numbers on attend.py's page: attention weights, contributions, everything else."""
  path = folder / "page.html"
  stdout(attend.main, "-p", "The man took his hat.", "--html", path, "-q")
  data = json.loads(
    re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', path.read_text(), re.S)[1]
  )
  result = []
  for attention_map in data["maps"]:
    result += list(base64.b64decode(attention_map["data"]))
  result += numbers(np.frombuffer(base64.b64decode(data["parts"]["adds"]), "<f4"))
  return result + sorted(flatten(data))


def commands(folder: Path) -> dict:
  """Return what the commands write to standard output, by a description of the call."""
  prompt = ["-p", "Once upon a time", "-n", "24"]
  for name in ("fill", "classify", "answer", "t5"):
    (folder / name).mkdir()
  question = ("who lives in rome?", "ann lee lives in rome.")
  return {
    "gpt greedy": gpt_command(*prompt, "-t", "0"),
    "gpt seed 1": gpt_command(*prompt, "-s", "1"),
    "gpt top-p, two texts": gpt_command(*prompt, "-s", "2", "-N", "2", "-k", "0", "--top-p", "0.9"),
    "gpt int8": gpt_command(*prompt, "-t", "0", "--dtype", "int8"),
    "ask fill": ask_command("ForMaskedLM", folder / "fill", "The capital of France is [MASK]."),
    "ask classify": ask_command(
      "ForSequenceClassification", folder / "classify", "who lives in rome?"
    ),
    "ask answer": ask_command("ForQuestionAnswering", folder / "answer", *question),
    "ask t5": ask_command("t5", folder / "t5", "a red house"),
    "evaluate": evaluate_command(folder, "--stride", "16"),
    "attend": stdout(attend.main, "-p", "The man took his hat.", "--layer", "2"),
    "attend page": page_data(folder),
  }


def main() -> None:
  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    results = {
      "logits": {case: logits(case) for case in FAMILIES},
      "gradients": {case: gradients(case) for case in FAMILIES},
      "greedy": {case: greedy(case) for case in [*DECODERS, *ENCODER_DECODERS]},
      "commands": commands(Path(folder)),
    }
  FROZEN.write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
