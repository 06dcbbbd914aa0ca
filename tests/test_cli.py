import re

from tinyformer import cli


def test_the_time_left_is_by_what_was_done_since_the_bar_began(monkeypatch, capsys):
  """A run that is gone on with at step 500 of 1,000, a step a second; then a second file under the same bar."""
  now = iter([100.0, 101.0, 200.0, 599.0, 600.0, 700.0, 710.0])
  monkeypatch.setattr(cli, "fancy", lambda _: True)
  monkeypatch.setattr(cli.time, "monotonic", lambda: next(now))
  bar = cli.Bar("train")
  for done, total in (
    (500, 1000),
    (501, 1000),
    (600, 1000),
    (999, 1000),
    (1000, 1000),
    (0, 50),
    (10, 50),
  ):
    bar(done, total)
  assert re.findall(r"(\S+)  (\S+) left", capsys.readouterr().err) == [
    ("50%", "?"),
    ("50%", "8:19"),
    ("60%", "6:40"),
    ("100%", "0:01"),
    ("100%", "0:00"),
    ("0%", "?"),
    ("20%", "0:40"),
  ]
