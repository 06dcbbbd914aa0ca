"""attend.py as a user runs it."""

import base64
import json
import shutil
import sys

import numpy as np
import pytest
from conftest import FIXTURES, ROOT, with_head
from test_ask import WORDS
from test_page import read_data

import attend
import tinyformer.vision
from tinyformer import cli
from tinyformer.interpret.terminal import SHADES, display_width


def run(capsys, *argv):
  """Run attend.py and return (exit status, standard output, standard error)."""
  try:
    status = cli.run(lambda: attend.main([str(a) for a in argv]))
  except SystemExit as e:
    status = e.code
  captured = capsys.readouterr()
  return status, captured.out, captured.err


def page_weights(data, index=0):
  """Return the 8-bit attention weights (layers, H, T, S) of a map on a page."""
  m = data["maps"][index]
  weights = np.frombuffer(base64.b64decode(m["data"]), np.uint8)
  return weights.reshape(m["layers"], m["heads"], m["T"], m["S"])


def page_contributions(data):
  """Return the contributions (parts, P, n) on a page."""
  parts = data["parts"]
  values = np.frombuffer(base64.b64decode(parts["adds"]), "<f4")
  return values.reshape(len(parts["names"]), data["lens"]["count"], parts["count"])


def num_tiny_layers():
  return json.loads((ROOT / "weights/tiny/config.json").read_text())["n_layer"]


def copy_with_words(case, folder):
  """Copy a fixture and add a vocabulary of words."""
  shutil.copytree(FIXTURES / case, folder, dirs_exist_ok=True)
  (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  return folder


def save_random_image(path):
  Image = pytest.importorskip("PIL.Image")
  pixels = np.random.default_rng(0).integers(0, 255, (30, 20, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(path)
  return path


def assert_consistent(data):
  """Assert the properties of every page."""
  for index, m in enumerate(data["maps"]):
    assert (page_weights(data, index).astype(int).sum(-1) == 255).all()
    assert len(data["texts"][m["rows"]]["labels"]) == m["T"]
    assert len(data["texts"][m["columns"]]["labels"]) == m["S"]
  if data["parts"]:
    total = page_contributions(data).sum(0)
    np.testing.assert_allclose(total, data["parts"]["logits"], atol=1e-4)


def test_every_layer_and_head_is_printed(capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "60")
  status, out, err = run(capsys, "-p", "the man and the woman")
  lines = out.splitlines()
  titles = [line for line in lines if line.startswith("layer")]
  num_tokens = 5
  assert status == 0
  assert not err
  assert titles[0].startswith("layer 0, heads 0, 1")
  assert titles[-1].startswith(f"layer {num_tiny_layers() - 1}, ")
  assert len(lines) == len(titles) * (1 + num_tokens + 1) + 1
  assert lines[-1].startswith("attention weight, linear scale: ░ ≤0.25 ")
  assert max(map(display_width, lines)) <= 60
  out = run(capsys, "-p", "the man and the woman", "--layer", "2", "--head", "1")[1]
  assert out.count("\n") == 8


def test_the_square_root_shows_small_weights_with_stronger_shades(capsys):
  argv = ["-p", "the man and the woman", "--layer", "2"]
  linear = run(capsys, *argv)[1]
  assert run(capsys, *argv, "--scale", "linear")[1] == linear
  sqrt = run(capsys, *argv, "--scale", "sqrt")[1]
  *linear_lines, _ = linear.splitlines()
  *sqrt_lines, sqrt_legend = sqrt.splitlines()
  assert sqrt_legend.startswith("attention weight, square-root scale: ")
  pairs = [
    (SHADES.index(a), SHADES.index(b))
    for linear_line, sqrt_line in zip(linear_lines, sqrt_lines, strict=True)
    for a, b in zip(linear_line, sqrt_line, strict=True)
    if a in SHADES and b in SHADES
  ]
  assert all(a <= b for a, b in pairs)
  assert sum(a < b for a, b in pairs) > 10


def test_the_terminal_shows_only_printable_characters_and_the_page_all(capsys, tmp_path):
  hostile = "a\x1b[31m\tשלום </script> 😀中"
  out = run(capsys, "-p", hostile, "--layer", "0")[1]
  assert all(c.isprintable() or c == "\n" for c in out)
  assert "ש" not in out
  assert "sc ▏" in out
  path = tmp_path / "look.html"
  path.write_text("old")
  status, out, err = run(capsys, "-p", hostile, "--html", path, "--layer", 1)
  data = read_data(path.read_text())
  labels = data["texts"]["text"]["labels"]
  assert (status, out, err.count("\n")) == (0, "", 1)
  assert [p.name for p in tmp_path.iterdir()] == ["look.html"]
  assert {"sc", "ri", "pt"} <= set(labels)
  assert any("ש" in label for label in labels)
  assert any("😀" in label for label in labels)
  assert data["start"]["layer"] == 1
  assert_consistent(data)
  assert len(data["lens"]["best"]) == num_tiny_layers() + 1
  assert set(data["kinds"]["maps"]["0"]) == {"previous", "first", "duplicate", "induction"}


@pytest.mark.parametrize(
  "argv, message",
  [
    (["-p", "word " * 300], "display its end with --last 256"),
    (["-p", "a", "--layer", "99"], "layers 0 to "),
    (["-p", "a", "--head", "99"], "heads 0 to "),
    (["-p", ""], "the prompt is empty"),
    (["-p", "a", "--html", "/nowhere/x.html"], "mkdir -p"),
    (["-p", "a", "--html", "/"], "is a folder"),
    (["-p", "a", "--target", "b"], "not an encoder-decoder"),
    (["--picture", "cat.jpg"], "reads text"),
  ],
  ids=lambda x: x if isinstance(x, str) else None,
)
def test_invalid_arguments_give_one_line_and_exit_status_2(capsys, argv, message):
  status, out, err = run(capsys, *argv)
  assert (status, out) == (2, "")
  assert message in err
  assert err.count("\n") == 1


def test_without_matplotlib_the_error_says_how_to_install_it(capsys, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.colors", None)
  monkeypatch.delitem(sys.modules, "tinyformer.interpret.figure", raising=False)
  status, out, err = run(capsys, "-p", "a", "--png", tmp_path / "x.png")
  assert (status, out) == (2, "")
  assert "pip install -e '.[plot]'" in err
  assert err.count("\n") == 1
  assert not list(tmp_path.iterdir())


def test_last_reads_only_the_last_tokens(capsys):
  status, out, _ = run(capsys, "-p", "word " * 300, "--last", "6", "--layer", "1", "--head", "0")
  assert status == 0
  assert out.count("\n") == 9


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bart-a", "t5-a", "marian-a"])
def test_the_target_of_an_encoder_decoder_is_the_greedy_output_or_given(capsys, tmp_path, case):
  folder = copy_with_words(case, tmp_path / "model")
  file = tmp_path / "x.html"
  config_file = folder / "generation_config.json"
  start = json.loads(config_file.read_text())["decoder_start_token_id"]
  # A config without forbidden tokens, so that the output equals the most probable tokens.
  config = {"decoder_start_token_id": start, "num_beams": 4, "max_length": 9}
  config_file.write_text(json.dumps(config))
  argv = ["-m", folder, "-p", "who lives in rome?"]

  assert run(capsys, *argv, "--html", file, "-q") == (0, "", "")
  data = read_data(file.read_text())
  assert_consistent(data)
  assert [m["name"] for m in data["maps"]] == ["encoder", "decoder", "cross"]
  assert set(data["kinds"]["maps"]) == {"0", "1"}
  target = [label.strip() for label in data["texts"]["target"]["labels"]]
  lens = data["lens"]
  predictions = [lens["names"][best[0]].strip() for best in lens["best"][-1]]
  assert len(target) > 2
  assert target[1:] == predictions[: len(target) - 1]

  assert run(capsys, *argv, "--target", "ann lee", "--html", file)[0] == 0
  data = read_data(file.read_text())
  assert_consistent(data)
  target = [label.strip() for label in data["texts"]["target"]["labels"]]
  assert target[-2:] == ["ann", "lee"]
  out = run(capsys, *argv, "--target", "ann lee")[1]
  assert all(f"{name}, layer 0, head" in out for name in ("encoder", "decoder", "cross"))


@pytest.mark.slow
@pytest.mark.parametrize(
  "head, has_lens, reason",
  [
    ("ForMaskedLM", True, "not linear"),
    ("ForSequenceClassification", True, "not linear"),
    ("ForTokenClassification", True, None),
    ("ForQuestionAnswering", False, ""),
    ("Model", False, ""),
  ],
)
def test_the_head_of_an_encoder_determines_the_sections_of_the_page(
  capsys, tmp_path, head, has_lens, reason
):
  folder = with_head("bert-a", head, tmp_path)
  file = tmp_path / "x.html"
  (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  prompt = "the capital of france is [MASK]."
  assert run(capsys, "-m", folder, "-p", prompt, "--html", file)[0] == 0
  data = read_data(file.read_text())
  assert_consistent(data)
  assert bool(data["lens"]) == has_lens
  assert bool(data["how"]["lens"])
  assert bool(data["parts"]) == (reason is None)
  assert (reason or "") in data["how"]["parts"]
  assert ("[MASK]" in data["texts"]["text"]["labels"]) == (head == "ForMaskedLM")


@pytest.mark.slow
def test_an_image_is_shown_with_the_weights_of_its_patches(capsys, tmp_path, monkeypatch):
  pytest.importorskip("PIL.Image")
  from tinyformer.vision.image_processor import Preprocessor

  folder = shutil.copytree(FIXTURES / "vit-a", tmp_path / "vit")
  file = tmp_path / "x.html"
  Preprocessor({"size": 12}).save(folder)
  image = save_random_image(tmp_path / "cat.png")
  for option in ("-p", "--picture"):
    assert run(capsys, "-m", folder, option, image, "--html", file)[0] == 0
    data = read_data(file.read_text())
    assert_consistent(data)
    assert (data["picture"]["rows"], data["picture"]["columns"]) == (3, 3)
    assert page_weights(data).shape == (2, 3, 10, 10)
    assert data["lens"]["count"] == 1
    assert data["picture"]["src"].startswith("data:image/png;base64,")
    prediction = data["lens"]["names"][data["lens"]["best"][-1][0][0]]
    assert prediction in ("dot", "line", "field", "none", "cross")
  out = run(capsys, "-m", folder, "-p", image, "--layer", "1")[1]
  assert out.startswith("layer 1, heads 0, 1, 2\n")
  assert out.count("\n") == 6
  *maps, legend = out.splitlines()
  assert "".join(maps).count("█") >= 3  # the patch with the largest weight of each head
  assert "largest weight of a patch" in legend
  message = "error: the file a cat does not exist: this model reads an image file\n"
  assert run(capsys, "-m", folder, "-p", "a cat")[::2] == (2, message)

  monkeypatch.setitem(sys.modules, "PIL", None)
  monkeypatch.delitem(sys.modules, "tinyformer.vision.image_processor")
  monkeypatch.delattr(tinyformer.vision, "image_processor")
  status, out, err = run(capsys, "-m", folder, "-p", image, "--html", file)
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert "pip install -e '.[pictures]'" in err


@pytest.mark.slow
@pytest.mark.parametrize(
  "argv",
  [[], ["--layer", "1"], ["--layer", "1", "--head", "0"]],
  ids=["all heads", "one layer", "one head"],
)
def test_png_writes_a_png(capsys, tmp_path, argv):
  # The first import of font_manager may print a message.
  pytest.importorskip("matplotlib.font_manager", reason="needs the extra `plot`")
  path = tmp_path / "x.png"
  status, out, err = run(capsys, "-p", "a $\\frac{ $x$ שלום 中", "--png", path, *argv)
  assert (status, out, err.count("\n")) == (0, "", 1)
  assert path.read_bytes().startswith(b"\x89PNG")
  assert len(list(tmp_path.iterdir())) == 1
