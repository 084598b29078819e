"""A cause of death is reported only if there is evidence for it."""

from __future__ import annotations

from pathlib import Path

from pytest_pprank.report.evidence import OomKillCounter, split_stderr

DUMP = """\
warming up
oh no

Fatal Python error: Segmentation fault

Current thread 0x00007fee605d2b80 (most recent call first):
  File "test_a.py", line 16 in test_kill
  File "_pytest/python.py", line 187 in pytest_pyfunc_call
  File "pluggy/_execution.py", line 147 in _multicall

Extension modules: numpy, torch (total: 2)
"""


def test_last_words_are_split() -> None:
    evidence, rest = split_stderr(DUMP)
    assert evidence.last_line == "oh no"
    assert rest == "warming up\noh no\n\n"
    assert evidence.dump.startswith("Fatal Python error: Segmentation fault")
    assert evidence.dump.endswith('File "test_a.py", line 16 in test_kill')


def test_nothing_said() -> None:
    evidence, rest = split_stderr("")
    assert (evidence.last_line, evidence.dump, rest) == ("", "", "")


def witness(tmp_path: Path, before: int, after: int) -> OomKillCounter:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text(f"nr_free 7\noom_kill {before}\nlast 1\n")
    found = OomKillCounter(vmstat)
    vmstat.write_text(f"nr_free 7\noom_kill {after}\nlast 1\n")
    return found


def test_the_kernel_says_out_of_memory(tmp_path: Path) -> None:
    said = witness(tmp_path, 3, 4).explain("killed by SIGKILL")
    assert said.startswith("out of memory")
    assert "ended 1 process" in said


def test_a_kill_without_the_kernels_word(tmp_path: Path) -> None:
    assert witness(tmp_path, 3, 3).explain("killed by SIGKILL") == ""


def test_another_signal_is_not_out_of_memory(tmp_path: Path) -> None:
    assert witness(tmp_path, 3, 4).explain("killed by SIGSEGV") == ""


def test_no_counter(tmp_path: Path) -> None:
    assert OomKillCounter(tmp_path / "none").explain("killed by SIGKILL") == ""
