"""Documents: files, folders and compressed files, and the training and validation split."""

import gzip
import lzma
import os
from pathlib import Path

import pytest

from tinyformer.training.documents import read_documents, train_val_split


def test_documents_are_read_from_files_folders_and_compressed_files(tmp_path):
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
def test_missing_damaged_and_empty_files_are_errors_that_name_the_file(tmp_path, name, data):
  if data is not None:
    (tmp_path / name).write_bytes(data)
  with pytest.raises((OSError, ValueError), match=name):
    read_documents([tmp_path / name])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_or_a_device_is_refused_and_a_shells_pipe_is_read(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for path, kind in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device")):
    with pytest.raises(OSError, match=f"is {kind}, but must be a regular file"):
      read_documents([path])
  read_end, write_end = os.pipe()
  os.write(write_end, b"text")
  os.close(write_end)
  assert read_documents([Path(f"/dev/fd/{read_end}")]) == ["text"]
  os.close(read_end)


def test_validation_set_has_full_documents_and_the_requested_fraction_of_the_text():
  documents = [f"document {i} " * 10 for i in range(100)]
  train, val = train_val_split(documents, 1)
  assert sorted(train + val) == sorted(documents)
  assert 4 <= len(val) <= 7
  assert train_val_split(documents, 1) == (train, val)
  assert train_val_split(documents, 2) != (train, val)
  assert 9 <= len(train_val_split(documents, 1, 0.1)[1]) <= 11


def test_the_end_of_a_single_document_is_the_validation_set():
  [train], [val] = train_val_split(["x" * 1000], 1)
  assert (len(train), len(val)) == (950, 50)
  assert [len(part[0]) for part in train_val_split(["x" * 1000], 1, 0.1)] == [900, 100]


def test_at_least_one_document_remains_for_training():
  assert len(train_val_split(["a" * 5, "b" * 5], 1)[0]) == 1
