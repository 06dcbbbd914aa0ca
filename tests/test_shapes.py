import argparse
import math
import random

import pytest

from experiments import shapes
from tinyformer import cli


def test_a_shape_is_read_and_counted():
  s = shapes.shape("300:2:3:12:1e-2")
  assert s == (300, 2, 3, 12, 0.01) and str(s) == "300-2x12"
  forward = (
    2 * (2 * (4 * 12 * 12 + 2 * 12 * 48) + 300 * 12) + 2 * 2 * (2 * 12 * 16) / 2
  )  # a product of K numbers is 2 K; scores and sums over 16 tokens, half of them masked
  assert s.flops(16) == 3 * forward  # the gradient of a product is two more
  for wrong in ("300:2:3:12", "300:2:3:twelve:1e-2", "300:0:3:12:1e-2"):
    with pytest.raises(argparse.ArgumentTypeError):
      shapes.shape(wrong)


@pytest.mark.slow
def test_equal_compute_is_given_once(tmp_path, capsys):
  draw, words = (
    random.Random(0),
    ["the", "king", "queen", "had", "saw", "a", "golden", "ball", "horse", "and", "in", "wood"],
  )
  data, args = (
    tmp_path / "tales.txt",
    [
      "--context",
      "16",
      "--batch",
      "4",
      "--max-tokens-per-document",
      "200",
      "-o",
      str(tmp_path / "x"),
      "--shape",
      "300:1:2:16:1e-2",
      "--shape",
      "300:2:2:16:1e-2",
    ],
  )
  data.write_text(
    "<|endoftext|>".join(" ".join(draw.choice(words) for _ in range(60)) for _ in range(60))
  )

  def rows(*more):
    return shapes.main([str(data), *args, *more]), [
      [c.strip() for c in line.split("|")[1:-1]]
      for line in capsys.readouterr().out.splitlines()
      if line.startswith("| 3")
    ]

  status, found = rows("--flops", "2e8")
  assert status == 0 and sorted(r[1] for r in found) == ["1", "2"] and found[0][-1] <= found[1][-1]
  one, two = ({r[1]: float(r[-1]) for r in found}[layers] for layers in "12")
  least = math.log2(12) / (43 / 12 + 1)  # one of twelve words, of 43 letters together, and a blank
  assert least < one < 2 * least and least < two < 2 * least and one != two
  assert (tmp_path / "x" / "300-1x16" / "vocab.json").read_bytes() == (
    tmp_path / "x" / "300-2x16" / "vocab.json"
  ).read_bytes()
  assert rows("--flops", "2e8") == (0, found)  # nothing is taught again
  with pytest.raises(cli.Usage, match="name another folder"):
    rows("--flops", "4e8")
