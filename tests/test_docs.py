"""The documentation: its commands are valid, its links resolve, and its Python code runs."""

import argparse
import ast
import importlib
import inspect
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += [str(f.relative_to(ROOT)) for f in sorted((ROOT / "docs").glob("*.md"))]
DOCS = {Path(name): (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
# Names of pages that other pages are expected to have.
REQUIRED = "performance models attention training python layout testing references glossary "
REQUIRED += "questions experiments environment tinygrad-in-ten-lines paper security tasks"


def page(name: str) -> str:
  return DOCS[Path(name)]


def test_every_page_exists_and_a_link_leads_to_it():
  readme_and_linked = page("README.md") + "".join(map(page, ("docs/models.md", "docs/paper.md")))
  for name in REQUIRED.split():
    assert Path(f"docs/{name}.md") in DOCS
    assert f"{name}.md" in readme_and_linked, name


# commands


def commands(text: str) -> set[str]:
  """Return the Python commands in sh blocks and inline code, without shell redirections."""
  blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S))
  in_blocks = re.findall(r"^(?:.*(?:&&|\|) )?(python (?:\S+\.py|-m tinyformer).*)", blocks, re.M)
  inline = re.findall(r"`(python (?:\S+\.py|-m tinyformer)[^`…]*)`", text)
  return {re.split(r" (?:[<>]+ |#)", c)[0].strip() for c in in_blocks + inline if "--help" not in c}


COMMANDS = sorted({c for text in DOCS.values() for c in commands(text)})


class Parsed(Exception):  # noqa: N818
  """Raised after the arguments are parsed, so that the command itself does not run."""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_parser_of_a_documented_command_accepts_its_arguments(command, monkeypatch, capsys):
  parse = argparse.ArgumentParser.parse_args

  def parse_and_stop(self, args=None, namespace=None):
    parse(self, args, namespace)
    raise Parsed

  monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
  _, file, *argv = shlex.split(command)
  assert (ROOT / file).exists() or file == "-m"
  if file.startswith("tests/"):
    return  # takes words, not options
  if file == "-m":
    module, *argv = argv
  elif file == "transformer.py":
    module = "tinyformer.walkthrough"
  else:
    module = file.removesuffix(".py").replace("/", ".")
  with pytest.raises(Parsed):
    importlib.import_module(module).main(argv)


def test_invalid_flags_and_missing_files_in_commands_are_detected(monkeypatch, capsys):
  check = test_the_parser_of_a_documented_command_accepts_its_arguments
  for wrong in ("python experiments/reverse.py --slow", "python transformer.py --walk"):
    with pytest.raises(SystemExit):
      check(wrong, monkeypatch, capsys)
  with pytest.raises(AssertionError):
    check("python experiments/none.py", monkeypatch, capsys)


def test_the_extras_of_pip_commands_exist():
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  named = {
    extra
    for text in DOCS.values()
    for group in re.findall(r"pip install[^\n`]* -e '\.\[([\w,]+)\]'", text)
    for extra in group.split(",")
  }
  assert "cpu" in named and named <= extras.keys()


def test_every_model_has_a_command():
  text = page("docs/models.md")
  tables = text.split("\n## ")
  names = re.findall(r"^\| (?!Model\b)(\w[^|]*?) \|", tables[2], re.M)
  with_command = tables[1]
  assert len(names) > 10
  for name in names:
    for part in name.split(" (")[0].split(", "):
      if part not in ("Transformer", "v3"):
        assert re.search(rf"^\| [^|]*{re.escape(part)}.*`python", with_command, re.M), part


# links


def links(text: str) -> list[str]:
  """Return the targets of links and pictures, except addresses on the web."""
  text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
  targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
  return [target for target in targets if not target.startswith("http")]


def anchors(text: str) -> set[str]:
  """Return the anchors that GitHub gives to the headings of a page."""
  text = re.sub(r"```.*?```", "", text, flags=re.S)
  headings = re.findall(r"^#+ (.*)", text, re.M)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_links(name: Path, text: str) -> None:
  for link in links(text):
    path, _, anchor = link.partition("#")
    target = ROOT / name.parent / path if path else ROOT / name
    assert target.exists(), f"{name}: {link}"
    if anchor:
      assert anchor in anchors(target.read_text(encoding="utf-8")), f"{name}: {link}"


@pytest.mark.parametrize("name", DOCS, ids=str)
def test_links_pictures_and_anchors_exist(name):
  check_links(name, DOCS[name])


@pytest.mark.parametrize("link", ["docs/none.md", "docs/python.md#none", "#none"])
def test_broken_links_and_anchors_are_detected(link):
  with pytest.raises(AssertionError):
    check_links(Path("README.md"), f"# A title\n\n[text]({link})")


def test_pictures_are_small_png_files_with_a_description():
  for figure in (ROOT / "docs").glob("*.png"):
    assert figure.stat().st_size < 500_000, figure.name
    assert figure.read_bytes().startswith(b"\x89PNG"), figure.name
  for name, text in DOCS.items():
    described = re.findall(r"!\[([^\]]*)\]|<img [^>]*alt=\"([^\"]*)\"", text)
    assert len(described) == len(re.findall(r"!\[|<img ", text)), name
    assert all(len(a or b) > 15 for a, b in described), name


FOLDERS = ("layers/", "models/", "tinyformer/", "experiments/", "benchmarks/", "tests/", "docs/")
FOLDERS += ("weights/tiny",)


def test_files_and_folders_that_are_named_in_code_exist():
  names = {path.name for path in ROOT.rglob("*.py")}
  for name, text in DOCS.items():
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    for code in re.findall(r"`([^`\s]+)`", text):
      if code.startswith(FOLDERS):
        assert (ROOT / code).exists(), f"{name}: {code}"
      elif re.fullmatch(r"[\w/]+\.py", code):
        assert Path(code).name in names, f"{name}: {code}"


# Python blocks


class Block(NamedTuple):
  """A Python block. comment: the HTML comment on the line before, or an empty string."""

  page: Path
  code: str
  comment: str


def python_blocks() -> list[Block]:
  pattern = r"(?:^<!-- ([^\n]*) -->\n)?^```python\n(.*?)^```"
  return [
    Block(name, code, comment)
    for name, text in DOCS.items()
    for comment, code in re.findall(pattern, text, re.M | re.S)
  ]


BLOCKS = python_blocks()
RUN = {
  name: [block.code for block in BLOCKS if block.page == name and not block.comment]
  for name in DOCS
}
# Runs each block in a namespace of its own.
RUNNER = """
import json, sys
for number, code in enumerate(json.load(open(sys.argv[1])), 1):
  print(f"block {number}", file=sys.stderr)
  exec(compile(code, f"block {number}", "exec"), {"__name__": "__main__"})
"""


def test_every_kind_of_block_occurs_and_no_other():
  kinds = {re.sub("from .*", "from", block.comment) for block in BLOCKS}
  assert kinds == {"", "needs a download", "from"}
  assert sum(map(bool, RUN.values())) >= 6


# The blocks of these pages run in the default tests, those of the others in .ci/run.
FAST_PAGES = (Path("README.md"), Path("docs/tinygrad-in-ten-lines.md"))


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=() if name in FAST_PAGES else pytest.mark.slow)
    for name in DOCS
    if RUN[name]
  ],
  ids=str,
)
def test_the_python_blocks_of_a_page_run(name, tmp_path):
  """They run in a folder beside which only weights/ is found, and without a known compiler."""
  import json

  (tmp_path / "weights").symlink_to(ROOT / "weights")
  (tmp_path / "blocks.json").write_text(json.dumps(RUN[name]))
  env = {k: v for k, v in os.environ.items() if k != "CC"} | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", RUNNER, "blocks.json"]
  process = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert process.returncode == 0, f"{name}: {process.stderr}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.comment == "needs a download"])
def test_the_names_in_blocks_that_need_a_download_exist(block):
  import tinyformer

  tree = ast.parse(block.code)
  results = tinyformer.Prediction, tinyformer.Entity, tinyformer.Answer
  fields = {field for result in results for field in result._fields}
  models = {
    target.id
    for node in ast.walk(tree)
    if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("tinyformer.load(")
    for target in node.targets
    if isinstance(target, ast.Name)
  }
  assert models
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      owner = node.value.id
      if owner == "tinyformer":
        assert node.attr in tinyformer.__all__
      elif owner in models:
        assert hasattr(tinyformer.Model, node.attr), node.attr
      else:
        assert node.attr in fields, node.attr
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
      check_arguments(node, tinyformer, models)


def check_arguments(call: ast.Call, tinyformer, models: set[str]) -> None:
  """Check the arguments of a call of tinyformer or of a model."""
  function = call.func
  assert isinstance(function, ast.Attribute)
  owner = ast.unparse(function.value)
  if owner == "tinyformer":
    signature = inspect.signature(getattr(tinyformer, function.attr))
    positional = len(call.args)
  elif owner in models:
    signature = inspect.signature(getattr(tinyformer.Model, function.attr))
    positional = 1 + len(call.args)
  else:
    return
  keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
  signature.bind(*[None] * positional, **keywords)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.comment.startswith("from ")])
def test_quoted_code_is_that_of_the_file(block):
  source = (ROOT / block.comment.removeprefix("from ")).read_text(encoding="utf-8")
  assert block.code in source


def test_tinygrad_in_ten_lines_has_ten_lines():
  code = RUN[Path("docs/tinygrad-in-ten-lines.md")][0]
  assert re.findall(r"  # (\d+)\. ", code) == [str(i) for i in range(1, 11)]
  statements = code.split("from tinygrad import Tensor\n")[1].split("\n")
  assert len([line for line in statements if line]) == 10


@pytest.mark.slow
@pytest.mark.parametrize("n", range(2))
def test_the_code_in_questions_md_prints_what_the_text_says(n):
  code = RUN[Path("docs/questions.md")][n]
  process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  if n == 0:
    # The cosine of a matrix with itself is 1; with another layer's matrix it is near 0.
    rows = re.findall(r"\[([-\d., ]+)\]", process.stdout)
    cosines = [[float(x) for x in row.split(",")] for row in rows]
    assert len(cosines) == 4
    assert all(abs(x - (i == j)) < 0.15 for i, row in enumerate(cosines) for j, x in enumerate(row))
  else:
    assert "' before'" in process.stdout
    assert "' twenty'" in process.stdout


# what single pages say


def test_the_attention_map_is_what_the_command_prints():
  pattern = r"`python (attend.py [^`]*)`.*?```\n(.*?)```"
  [argv, expected] = re.findall(pattern, page("docs/attention.md"), re.S)[0]
  command = [sys.executable, *shlex.split(argv), "--layer", "3"]
  env = os.environ | {"COLUMNS": "70"}
  process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
  printed = [line.rstrip() for line in process.stdout.splitlines()]
  lines = expected.splitlines()
  assert printed[: len(lines)] == lines, process.stderr


@pytest.mark.slow
def test_the_command_draws_such_a_picture_and_a_page(tmp_path):
  pytest.importorskip("matplotlib", reason="needs the extra `plot`")
  from PIL import Image

  command = next(c for c in commands(page("docs/attention.md")) if "--png" in c)
  words = shlex.split(command)[1:]
  argv = [str(tmp_path / word) if word.startswith("hat.") else word for word in words]
  process = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  assert (tmp_path / "hat.html").stat().st_size < 1_000_000
  actual, shown = Image.open(tmp_path / "hat.png"), Image.open(ROOT / "docs" / "attention.png")
  assert abs(actual.width / actual.height - shown.width / shown.height) < 0.05


def sources() -> dict[str, str]:
  """Return the text of the project's Python files, without tests, by their path."""
  folders = ("layers", "models", "tinyformer", "experiments", "benchmarks")
  files = [*ROOT.glob("*.py"), *(f for name in folders for f in (ROOT / name).rglob("*.py"))]
  return {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8") for f in sorted(files)}


def test_the_glossary_names_existing_identifiers():
  tests = [f.read_text(encoding="utf-8") for f in (ROOT / "tests").rglob("*.py")]
  words = set(re.findall(r"\w+", " ".join([*sources().values(), *tests])))
  for code in re.findall(r"`([^`]+)`", page("docs/glossary.md")):
    missing = set(re.findall(r"[A-Za-z_]\w{2,}", code)) - words
    assert not missing, f"{code}: {missing}"


def test_the_layout_lists_every_python_file():
  listed = {link.removeprefix("../") for link in links(page("docs/layout.md"))}
  # An __init__.py may be described by its folder.
  expected = {name for name in sources() if not name.endswith("__init__.py")}
  folders = {str(Path(name).parent) for name in sources()} - {
    ".",
    "tinyformer",
    "tinyformer/vision",
  }
  assert (expected | folders) - listed == set()


def test_the_environment_page_lists_the_variables_that_the_code_reads():
  text = " ".join(sources().values())
  read = set(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"|setting\(\"(\w+)\"\)", text))
  read = {a or b for a, b in read} | {"NO_COLOR"}
  rows = re.findall(r"^\| (`.*?) \|", page("docs/environment.md"), re.M)
  listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
  assert read <= listed
  # These are read by Python's standard library and by tinygrad.
  elsewhere = {"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "COLUMNS", "NUM_CPU_THREADS"}
  elsewhere |= {"RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE"}
  assert listed - elsewhere <= read


def test_the_page_on_the_paper_names_every_definition_of_transformer_py():
  tree = ast.parse((ROOT / "transformer.py").read_text(encoding="utf-8"))
  definitions = (ast.ClassDef, ast.FunctionDef)
  names = {node.name for node in tree.body if isinstance(node, definitions)}
  rows = re.findall(r"^\| \d.*\| (.*) \|$", page("docs/paper.md"), re.M)
  shown = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
  assert names - shown <= {"Linear", "dot_product"}
  assert shown - names <= {"memory", "dropout"}


def test_the_figure_of_the_paper_uses_the_names_of_transformer_py():
  figure = (ROOT / "docs" / "paper.svg").read_text(encoding="utf-8")
  source = (ROOT / "transformer.py").read_text(encoding="utf-8")
  names = set(
    re.findall(r"\b\w+_\w+\b|\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b", re.sub(r"<[^>]*>", " ", figure))
  )
  assert {"encoder_block", "decoder_block", "causal_mask", "MultiHeadAttention"} <= names
  assert all(re.search(rf"\b{name}\b", source) for name in names)


def test_the_changelog_keeps_a_changelogs_format():
  headings = re.findall(r"^(#+ .*)", page("CHANGELOG.md"), re.M)
  assert headings[:2] == ["# Changelog", "## Unreleased"]
  kinds = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
  assert all(heading in [f"### {kind}" for kind in kinds] for heading in headings[2:])


@pytest.mark.parametrize("name", DOCS, ids=str)
def test_prose_has_at_most_100_columns(name):
  text = re.sub(r"```.*?```", "", DOCS[name], flags=re.S)
  wide = [
    line
    for line in text.splitlines()
    if len(line) > 100 and not line.startswith(("|", "<img", "![", "["))
    if not re.search(r"https?://", line)
  ]
  assert not wide


@pytest.mark.parametrize("name", PAGES)
def test_pictures_have_two_pixels_per_css_pixel(name):
  image = pytest.importorskip("PIL.Image")
  for path, width in re.findall(r'<img src="([^"]+\.png)" width="(\d+)"', page(name)):
    assert image.open((ROOT / name).parent / path).width >= 2 * int(width), path
  assert not re.search(r"!\[[^]]*\]\([^)]*\.png\)", page(name)), "give the picture's width"


@pytest.mark.parametrize("name", PAGES)
def test_no_line_of_a_paragraph_begins_like_an_item_of_a_numbered_list(name):
  lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
  for previous, line in itertools.pairwise(lines):
    if re.match(r"\s*\d+[.)] ", line):
      assert not previous.strip() or re.match(r"\s*(\d+[.)]|-) |\s{2}", previous), line
