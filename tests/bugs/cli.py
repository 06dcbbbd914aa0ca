"""Bugs planted in tinyformer/cli; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "the remaining time ignores that a run was resumed",
    "tinyformer/progress.py",
    "Bar.__call__",
    "/ (done - self.initial) * (total - done)",
    "/ max(1, done) * (total - done)",
    "cli::test_remaining_time_is_estimated_from_the_progress_since_the_first_call",
  ),
  Bug(
    "two processes may lock a folder",
    "tinyformer/cli/folder_lock.py",
    "lock",
    "fcntl.LOCK_EX",
    "fcntl.LOCK_SH",
    "folder_lock::test_a_folder_that_another_process_has_locked_is_refused_with_the_process_id",
  ),
  Bug(
    "a lock on a deleted file counts",
    "tinyformer/cli/folder_lock.py",
    "open_locked",
    "if os.path.samestat(os.fstat(file), os.stat(path)): break",
    "break",
    "folder_lock::test_a_file_that_its_owner_deletes_before_it_is_locked_is_not_used",
  ),
  Bug(
    "train.py does not lock its folder",
    "train.py",
    "main",
    "with FolderLock(args.out): return",
    "if args.out: return",
    "train::test_training_lowers_the_validation_loss",
  ),
  Bug(
    "the first model is written before the first checkpoint",
    "tinyformer/cli/training_run.py",
    "TextRun.__init__",
    "self.save_checkpoint()\n      folder.create()",
    "folder.create()\n      self.save_checkpoint()",
    "train::test_a_run_killed_before_its_first_evaluation_can_be_resumed_or_started_again",
  ),
  Bug(
    "a run that is started again keeps the old tokenizer's files",
    "tinyformer/cli/training_run.py",
    "TextRun.__init__",
    "folder.clear()",
    "pass",
    "train::test_a_run_killed_before_its_first_evaluation_can_be_resumed_or_started_again",
  ),
  Bug(
    "OpenCL on a CPU is selected",
    "tinyformer/device.py",
    "select_device",
    "if selected_by_tinygrad and is_opencl_on_cpu(name)",
    "if False",
    "device::test_opencl_on_a_cpu_is_not_selected",
  ),
  Bug(
    "the error for a missing GPU blames the compiler",
    "tinyformer/device.py",
    "open_failure",
    'if requested and not requested.upper().startswith("CPU")',
    "if device",
    "device::test_the_error_for_a_missing_gpu_does_not_blame_the_compiler",
  ),
]
