"""attend.py as a user runs it."""

import base64
import json
import shutil
import sys

import numpy as np
import pytest
from conftest import FIXTURES, ROOT
from test_ask import WORDS
from test_page import told

import attend
from tinyformer import cli
from tinyformer.interpret.terminal import wide

TINY = str(ROOT / "weights" / "tiny")


def run(capsys, *argv):
  """(exit status, standard output, standard error)"""
  try:
    status = cli.run(lambda: attend.main([str(a) for a in argv]))
  except SystemExit as e:
    status = e.code
  said = capsys.readouterr()
  return status, said.out, said.err


def shown(data, index=0):
  """A map of a page, (layers, H, T, S)."""
  m = data["maps"][index]
  return np.frombuffer(base64.b64decode(m["data"]), np.uint8).reshape(
    m["layers"], m["heads"], m["T"], m["S"]
  )


def parts(data):
  """What the parts on a page add, (parts, P, n)."""
  return np.frombuffer(base64.b64decode(data["parts"]["adds"]), "<f4").reshape(
    len(data["parts"]["names"]), data["lens"]["count"], data["parts"]["count"]
  )


def with_words(case, folder):
  """A fixture and a vocabulary of words."""
  shutil.copytree(FIXTURES / case, folder, dirs_exist_ok=True)
  (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  return folder


def consistent(data):
  """What has to be true of every page."""
  for n, m in enumerate(data["maps"]):
    assert (shown(data, n).astype(int).sum(-1) == 255).all()
    assert (
      len(data["texts"][m["rows"]]["labels"]) == m["T"]
      and len(data["texts"][m["columns"]]["labels"]) == m["S"]
    )
  if data["parts"]:
    np.testing.assert_allclose(parts(data).sum(0), data["parts"]["logits"], atol=1e-4)


def test_every_layer_and_head_is_shown(capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "60")
  status, out, err = run(capsys, "-p", "the man and the woman")
  heads = [line for line in out.splitlines() if line.startswith("layer")]
  layers, count = json.loads((ROOT / "weights/tiny/config.json").read_text())["n_layer"], 5
  assert (
    status == 0
    and not err
    and heads[0].startswith("layer 0, heads 0, 1")
    and heads[-1].startswith(f"layer {layers - 1}, ")
  )
  assert (
    len(out.splitlines()) == len(heads) * (1 + count + 1) and max(map(wide, out.splitlines())) <= 60
  )
  assert (
    run(capsys, "-p", "the man and the woman", "--layer", "2", "--head", "1")[1].count("\n") == 7
  )


def test_what_a_terminal_could_not_show_is_a_dot_and_a_page_holds_what_was_typed(capsys, tmp_path):
  hostile = "a\x1b[31m\tשלום </script> 😀中"
  out = run(capsys, "-p", hostile, "--layer", "0")[1]
  assert all(c.isprintable() or c == "\n" for c in out) and "ש" not in out and "sc ▏" in out
  (tmp_path / "look.html").write_text("old")
  status, out, err = run(capsys, "-p", hostile, "--html", tmp_path / "look.html", "--layer", 1)
  data = told((tmp_path / "look.html").read_text())
  names = data["texts"]["text"]["labels"]
  assert (status, out, err.count("\n")) == (0, "", 1) and [p.name for p in tmp_path.iterdir()] == [
    "look.html"
  ]
  assert (
    {"sc", "ri", "pt"} <= set(names)
    and any("ש" in n for n in names)
    and any("😀" in n for n in names)
    and data["start"]["layer"] == 1
  )
  consistent(data)
  layers = json.loads((ROOT / "weights/tiny/config.json").read_text())["n_layer"]
  assert len(data["lens"]["best"]) == layers + 1 and set(data["kinds"]["maps"]["0"]) == {
    "previous",
    "first",
    "duplicate",
    "induction",
  }


@pytest.mark.parametrize(
  "argv, message",
  [
    (["-p", "word " * 300], "--last 256 shows its end"),
    (["-p", "a", "--layer", "99"], "layers 0 to "),
    (["-p", "a", "--head", "99"], "heads 0 to "),
    (["-p", ""], "the prompt is empty"),
    (["-p", "a", "--html", "/nowhere/x.html"], "mkdir -p"),
    (["-p", "a", "--html", "/"], "is a folder"),
    (["-p", "a", "--target", "b"], "no encoder-decoder"),
    (["--picture", "cat.jpg"], "reads text"),
  ],
  ids=lambda x: x if isinstance(x, str) else None,
)
def test_bad_input_is_a_line_and_exit_status_2(capsys, argv, message):
  status, out, err = run(capsys, *argv)
  assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_without_matplotlib_the_cure_is_told(capsys, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.colors", None)
  monkeypatch.delitem(sys.modules, "tinyformer.interpret.figure", raising=False)
  status, out, err = run(capsys, "-p", "a", "--png", tmp_path / "x.png")
  assert (
    (status, out) == (2, "")
    and "pip install -e '.[plot]'" in err
    and err.count("\n") == 1
    and not list(tmp_path.iterdir())
  )


def test_the_last_tokens_of_a_long_text_can_be_seen(capsys):
  status, out, _ = run(capsys, "-p", "word " * 300, "--last", "6", "--layer", "1", "--head", "0")
  assert status == 0 and out.count("\n") == 8


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bart-a", "t5-a", "marian-a"])
def test_an_encoder_decoder_is_shown_with_the_likeliest_answer_or_with_a_target(
  capsys, tmp_path, case
):
  folder, file = with_words(case, tmp_path / "model"), tmp_path / "x.html"
  config = json.loads((folder / "generation_config.json").read_text())
  (folder / "generation_config.json").write_text(
    json.dumps(
      {"decoder_start_token_id": config["decoder_start_token_id"], "num_beams": 4, "max_length": 9}
    )
  )  # nothing forbidden
  assert run(capsys, "-m", folder, "-p", "who lives in rome?", "--html", file, "-q") == (0, "", "")
  consistent(written := told(file.read_text()))
  assert [m["name"] for m in written["maps"]] == ["encoder", "decoder", "cross"] and set(
    written["kinds"]["maps"]
  ) == {"0", "1"}
  target, lens = written["texts"]["target"]["labels"], written["lens"]
  assert (
    len(target) > 2
    and [name.strip() for name in target[1:]]
    == [lens["names"][best[0]].strip() for best in lens["best"][-1]][: len(target) - 1]
  )
  assert (
    run(capsys, "-m", folder, "-p", "who lives in rome?", "--target", "ann lee", "--html", file)[0]
    == 0
  )
  consistent(given := told(file.read_text()))
  assert [n.strip() for n in given["texts"]["target"]["labels"]][-2:] == ["ann", "lee"]
  out = run(capsys, "-m", folder, "-p", "who lives in rome?", "--target", "ann lee")[1]
  assert all(f"{name}, layer 0, head" in out for name in ("encoder", "decoder", "cross"))


@pytest.mark.slow
@pytest.mark.parametrize(
  "head, lens, adds",
  [
    ("ForMaskedLM", True, "not linear"),
    ("ForSequenceClassification", True, "not linear"),
    ("ForTokenClassification", True, None),
    ("ForQuestionAnswering", False, ""),
    ("Model", False, ""),
  ],
)
def test_an_encoders_page_has_what_its_head_says(capsys, tmp_path, head, lens, adds):
  from conftest import with_head

  folder, file = with_head("bert-a", head, tmp_path), tmp_path / "x.html"
  (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  assert run(capsys, "-m", folder, "-p", "the capital of france is [MASK].", "--html", file)[0] == 0
  consistent(data := told(file.read_text()))
  assert (
    bool(data["lens"]) == lens
    and bool(data["how"]["lens"])
    and bool(data["parts"]) == (adds is None)
    and (adds or "") in data["how"]["parts"]
  )
  assert ("[MASK]" in data["texts"]["text"]["labels"]) == (head == "ForMaskedLM")


@pytest.mark.slow
def test_a_picture_is_shown_under_its_patches(capsys, tmp_path, monkeypatch):
  Image = pytest.importorskip("PIL.Image")
  from tinyformer.vision.image_processor import Preprocessor

  folder, file = shutil.copytree(FIXTURES / "vit-a", tmp_path / "vit"), tmp_path / "x.html"
  Preprocessor({"size": 12}).save(folder)
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 20, 3), dtype=np.uint8)).save(
    tmp_path / "cat.png"
  )
  for way in ("-p", "--picture"):
    assert run(capsys, "-m", folder, way, tmp_path / "cat.png", "--html", file)[0] == 0
    consistent(data := told(file.read_text()))
    assert (
      (data["picture"]["rows"], data["picture"]["columns"]) == (3, 3)
      and shown(data).shape == (2, 3, 10, 10)
      and data["lens"]["count"] == 1
    )
    assert data["picture"]["src"].startswith("data:image/png;base64,") and data["lens"]["names"][
      data["lens"]["best"][-1][0][0]
    ] in ("dot", "line", "field", "none", "cross")
  out = run(capsys, "-m", folder, "-p", tmp_path / "cat.png", "--layer", "1")[1]
  assert out.startswith("layer 1, heads 0, 1, 2\n") and out.count("\n") == 5
  assert run(capsys, "-m", folder, "-p", "a cat")[::2] == (
    2,
    "error: there is no file a cat: this model looks at pictures\n",
  )
  monkeypatch.setitem(sys.modules, "PIL", None)
  monkeypatch.delitem(sys.modules, "tinyformer.vision.image_processor")
  monkeypatch.delattr(sys.modules["models"], "pictures")
  status, out, err = run(capsys, "-m", folder, "-p", tmp_path / "cat.png", "--html", file)
  assert (status, out, err.count("\n")) == (2, "", 1) and "pip install -e '.[pictures]'" in err


@pytest.mark.slow
@pytest.mark.parametrize(
  "argv",
  [[], ["--layer", "1"], ["--layer", "1", "--head", "0"]],
  ids=["every head", "a layer", "a head"],
)
def test_the_picture_is_a_png(capsys, tmp_path, argv):
  pytest.importorskip(
    "matplotlib.font_manager", reason="needs the extra `plot`"
  )  # its first import may write a line of its own
  status, out, err = run(capsys, "-p", "a $\\frac{ $x$ שלום 中", "--png", tmp_path / "x.png", *argv)
  assert (
    (status, out, err.count("\n")) == (0, "", 1)
    and (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    and len(list(tmp_path.iterdir())) == 1
  )
