import gzip
import lzma

import pytest

from tinyformer.training.documents import read_documents, train_val_split


def test_text_is_read_from_files_folders_and_archives(tmp_path):
  (tmp_path / "f").mkdir()
  (tmp_path / "f" / "a.txt").write_text("one<|endoftext|> two \n<|endoftext|>\n")
  with gzip.open(tmp_path / "f" / "b.txt.gz", "wt") as f:
    f.write("three")
  with lzma.open(tmp_path / "c.xz", "wt") as f:
    f.write("four")
  assert read_documents([tmp_path / "f", tmp_path / "c.xz"]) == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
  "name, data",
  [
    ("a.txt", b"caf\xe9"),
    ("a.xz", b"no archive"),
    ("a.gz", b"no archive"),
    ("a.gz", gzip.compress(b"x" * 500, mtime=0)[:15] + b"???????"),
    ("a.txt", b" \n<|endoftext|>"),
    ("b.txt", None),
  ],
)
def test_what_is_no_text_is_told(tmp_path, name, data):
  if data is not None:
    (tmp_path / name).write_bytes(data)
  with pytest.raises((OSError, ValueError), match=name):
    read_documents([tmp_path / name])


def test_whole_documents_are_held_out():
  documents = [f"document {i} " * 10 for i in range(100)]
  learn, held = train_val_split(documents, 1)
  assert sorted(learn + held) == sorted(documents) and 4 <= len(held) <= 7
  assert train_val_split(documents, 1) == (learn, held) != train_val_split(documents, 2)
  [learn], [held] = train_val_split(["x" * 1000], 1)
  assert (len(learn), len(held)) == (950, 50)
  assert [len(part[0]) for part in train_val_split(["x" * 1000], 1, 0.1)] == [900, 100]
  assert 9 <= len(train_val_split(documents, 1, 0.1)[1]) <= 11
  assert len(train_val_split(["a" * 5, "b" * 5], 1)[0]) == 1  # something is left to learn from
