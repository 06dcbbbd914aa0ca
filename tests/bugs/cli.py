"""Bugs planted in tinyformer/cli; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "the remaining time ignores that a run was resumed",
    "tinyformer/progress.py",
    "Bar.__call__",
    "/ (done - self.initial) * (total - done)",
    "/ max(1, done) * (total - done)",
    "cli",
  ),
  Bug(
    "two processes may lock a folder",
    "tinyformer/cli/folder_lock.py",
    "lock",
    "fcntl.LOCK_EX",
    "fcntl.LOCK_SH",
    "folder_lock train",
  ),
  Bug(
    "a lock on a deleted file counts",
    "tinyformer/cli/folder_lock.py",
    "open_locked",
    "if os.path.samestat(os.fstat(file), os.stat(path)): break",
    "break",
    "folder_lock",
  ),
  Bug(
    "train.py does not lock its folder",
    "train.py",
    "main",
    "with FolderLock(args.out): return",
    "if args.out: return",
    "train",
  ),
  Bug(
    "the first model is written before the first checkpoint",
    "tinyformer/cli/training_run.py",
    "TextRun.__init__",
    "self.save_checkpoint()\n      folder.create()",
    "folder.create()\n      self.save_checkpoint()",
    "train",
  ),
  Bug(
    "a run that is started again keeps the old tokenizer's files",
    "tinyformer/cli/training_run.py",
    "TextRun.__init__",
    "folder.clear()",
    "pass",
    "train",
  ),
  Bug(
    "OpenCL on a CPU is selected",
    "tinyformer/device.py",
    "select_device",
    "if selected_by_tinygrad and is_opencl_on_cpu(name)",
    "if False",
    "device",
  ),
  Bug(
    "the error for a missing GPU blames the compiler",
    "tinyformer/device.py",
    "open_failure",
    'if requested and not requested.upper().startswith("CPU")',
    "if device",
    "device",
  ),
]
