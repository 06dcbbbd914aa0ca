"""experiments/shapes.py: shapes, their FLOPs and, in the slow suite, the command."""

import argparse
import math
import random

import pytest

from experiments import shapes
from tinyformer import cli


def test_a_shape_is_parsed_and_its_flops_are_counted():
  shape = shapes.parse_shape("300:2:3:12:1e-2")
  assert shape == (300, 2, 3, 12, 0.01)
  assert str(shape) == "300-2x12"
  # A dot product of K numbers is 2 K FLOPs. Attention is over 16 tokens, half of them masked.
  matmuls = 2 * (2 * (4 * 12 * 12 + 2 * 12 * 48) + 300 * 12)
  attention = 2 * 2 * (2 * 12 * 16) / 2
  # The backward pass of a matmul is two more matmuls.
  assert shape.flops_per_token(16) == 3 * (matmuls + attention)
  for wrong in ("300:2:3:12", "300:2:3:twelve:1e-2", "300:0:3:12:1e-2"):
    with pytest.raises(argparse.ArgumentTypeError):
      shapes.parse_shape(wrong)


@pytest.mark.slow
def test_each_shape_is_trained_once_with_equal_compute(tmp_path, capsys):
  rng = random.Random(0)
  words = ["the", "king", "queen", "had", "saw", "a", "golden", "ball", "horse", "and", "in"]
  words.append("wood")
  data, out = tmp_path / "tales.txt", tmp_path / "x"
  documents = [" ".join(rng.choice(words) for _ in range(60)) for _ in range(60)]
  data.write_text("<|endoftext|>".join(documents))
  options = ["--context", "16", "--batch", "4", "--max-chars-per-document", "200", "-o", str(out)]
  options += ["--shape", "300:1:2:16:1e-2", "--shape", "300:2:2:16:1e-2"]

  def run(*more):
    status = shapes.main([str(data), *options, *more])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 3")]
    return status, [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]

  status, rows = run("--flops", "2e8")
  assert status == 0
  assert sorted(row[1] for row in rows) == ["1", "2"]
  assert rows[0][-1] <= rows[1][-1]
  bits_per_byte = {row[1]: float(row[-1]) for row in rows}
  one_layer, two_layers = bits_per_byte["1"], bits_per_byte["2"]
  # One of twelve words, which have 43 letters in total, and a space.
  entropy = math.log2(12) / (43 / 12 + 1)
  assert entropy < one_layer < 2 * entropy
  assert entropy < two_layers < 2 * entropy
  assert one_layer != two_layers
  vocabularies = [(out / name / "vocab.json").read_bytes() for name in ("300-1x16", "300-2x16")]
  assert vocabularies[0] == vocabularies[1]
  assert run("--flops", "2e8") == (0, rows)  # reads the finished runs
  with pytest.raises(cli.UsageError, match="choose another folder"):
    run("--flops", "4e8")
