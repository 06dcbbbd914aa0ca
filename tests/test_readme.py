"""The README: its length and order, and the commands and numbers that it shows."""

import os
import re
import subprocess
import sys

import planted_bugs
import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))
SECTIONS = ["Speed", "Quick start", "Status and limits", "Python", "Models", "Commands"]
SECTIONS += ["Experiments", "Correctness", "More"]


def section(title: str) -> str:
  """Return the text of a section of the README."""
  [text] = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.M | re.S)
  return text


def words(markdown: str) -> list[str]:
  """Return the words of the text and the tables.

  Code blocks, HTML tags and comments, and the targets of links do not count.
  """
  text = re.sub(r"```.*?```|<!--.*?-->|</?[a-z]+ [^>]*>", " ", markdown, flags=re.S)
  text = re.sub(r"\]\([^)]*\)", "]", text)
  return [word for word in text.split() if re.search(r"\w", word)]


def test_code_blocks_tags_and_targets_of_links_are_not_words():
  markdown = "# Two words\n\n```sh\nno words\n```\n<!-- none -->\n| a [link](docs/x.md) | – |\n"
  assert words(markdown) == ["Two", "words", "a", "[link]"]


def test_the_readme_has_at_most_150_lines_and_1000_words():
  assert len(README.splitlines()) <= 150
  assert len(words(README)) <= 1000


def test_the_sections_are_in_order():
  assert re.findall(r"^## (.*)", README, re.M) == SECTIONS


def test_what_it_does_is_four_bullets_with_links_to_files():
  introduction = README.split("\n## ")[0]
  bullets = re.findall(r"^- (.*?)(?=^- |^$)", introduction, re.M | re.S)
  assert len(bullets) == 4
  assert all("](" in bullet for bullet in bullets)
  assert "docs/questions.md" in introduction


def test_the_reference_code_is_as_short_as_the_readme_says():
  [limit] = re.findall(r"in at most (\d+)\s+lines", README)
  assert len((ROOT / "transformer.py").read_text().splitlines()) <= int(limit)


def test_the_speed_table_has_six_rows_from_the_measurements_and_shows_where_a_peer_wins():
  rows = [line.split("|")[2:-1] for line in section("Speed").splitlines() if line[:2] == "| "]
  header, _separator, *rows = rows
  assert [cell.strip() for cell in header] == ["tinyformer", "llama.cpp", "torch", "CTranslate2"]
  assert len(rows) == 6
  for row in rows:
    for cell in row:
      number = cell.strip(" *")
      assert number == "–" or f"| {number} " in PERFORMANCE
  assert any("**" in cell for row in rows for cell in row[1:])


def test_the_date_and_machine_of_the_measurements_are_given():
  for text in (section("Speed"), PERFORMANCE):
    assert "2026-11-30" in text and "AMD EPYC" in text


def test_the_number_of_planted_bugs_is_not_exaggerated():
  for name in ("README.md", "docs/testing.md"):
    numbers = re.findall(r"more than (\d+)\s+(?:planted\s+)?bugs", (ROOT / name).read_text())
    assert len(numbers) == 1 and int(numbers[0]) < len(planted_bugs.load_bugs()), name


def test_the_continuous_integration_finds_the_test_command():
  """.ci/run reads the command between this comment and the end of the block with sed."""
  [command] = re.findall(r"^<!-- tests -->\n```sh\n(.*)\n```$", README, re.M)
  assert command == "pip install -e '.[cpu,test]' && python -m pytest"


def run(*argv, **env):
  return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=os.environ | env)


def test_the_first_command_answers_without_a_network():
  [command] = re.findall(r'&& python (gpt.py -p "[^"]+")', SHELL)
  prompt = "How can entropy be reversed?"
  assert command == f'gpt.py -p "{prompt}"'
  command = [sys.executable, "gpt.py", "-p", prompt, "-s", "1"]
  result = run(*command, HF_HUB_OFFLINE="1", HF_HUB_CACHE="/nowhere")
  if not (ROOT / "weights" / "gpt2").exists():
    assert "instead of gpt2" in result.stderr
  assert result.returncode == 0
  if "Using smollm2" not in result.stderr:  # its answer does not repeat the message
    assert result.stdout.startswith(prompt)
  assert len(result.stdout) > 100


@pytest.mark.parametrize("title, count", [("Experiments", 2)])
def test_a_section_has_its_pictures(title, count):
  assert len(re.findall(r'<img src="[^"]+" width="\d+" alt="[^"]{20,}">', section(title))) == count


def test_the_picture_of_the_page_is_on_the_first_screen():
  introduction = README.split("\n## ")[0]
  assert re.findall(r'<img src="([^"]+)"', introduction) == ["docs/page.png"]
