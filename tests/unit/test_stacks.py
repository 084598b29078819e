"""Stacks of all threads, captured from outside, without our own frames."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pytest_pprank.controller.stacks import ask_for_stacks
from pytest_pprank.protocol.stacks import stacks_file
from pytest_pprank.report.stacks import fold, trim_stacks

CHILD = """
import faulthandler, sys, threading
from pytest_pprank.protocol.stacks import STACKS_SIGNAL
file = open(sys.argv[1], "w")
faulthandler.register(STACKS_SIGNAL, file, all_threads=True)
def waits_for_ever():
    threading.Event().wait()
for _ in range(3):
    threading.Thread(target=waits_for_ever, daemon=True).start()
def pytest_pyfunc_call(): the_test()
def the_test():
    print("up", flush=True)
    sys.stdin.read()
pytest_pyfunc_call()
"""


def test_stacks_of_a_blocked_process(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(stacks_file(tmp_path, 1))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout
        assert child.stdout.readline() == "up\n"
        ((title, text),) = ask_for_stacks(tmp_path, {1: child.pid})
        child.kill()
    assert title == "Stacks of rank 1"
    assert "in the_test" in text
    assert text.count("in waits_for_ever") == 1
    assert re.search(
        r"\n?3 threads at threading.py:\d+ in wait < .*<string>:\d+ in waits_for_ever\n", text
    )
    assert "in _bootstrap" not in text  # how Python starts a thread
    assert "in pytest_pyfunc_call" not in text  # our frames, and those that call us


def test_a_process_that_is_gone_stays_silent(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    ((_, text),) = ask_for_stacks(tmp_path, {0: child.pid})
    assert "no answer" in text


def test_equal_stacks_are_told_once() -> None:
    stack = (
        "Current thread 0x00007f29{}efa12b80 (most recent call first):\n  File a.py, line 3 in f"
    )
    texts = {0: stack.format("0"), 1: stack.format("1"), 2: "another"}
    assert fold("Stacks", texts) == (
        (
            "Stacks of ranks 0,1",
            "Current thread (most recent call first):\n  File a.py, line 3 in f",
        ),
        ("Stacks of rank 2", "another"),
    )


def test_dump_has_the_current_thread_first_and_packages_without_their_folder() -> None:
    dump = """\
Fatal Python error: Segmentation fault

Thread 0x01 (most recent call first):
  File "/env/lib/python3.11/site-packages/sglang/srt/a.py", line 1 in a
  File "/env/lib/python3.11/site-packages/sglang/srt/a.py", line 2 in b
  File "/usr/lib/python3/dist-packages/c.py", line 3 in c
  File "/usr/lib/python3.11/queue.py", line 4 in d
  File "/home/me/checkout/e.py", line 5 in e

Current thread 0x02 (most recent call first):
  File "/home/me/test_it.py", line 6 in test_it
"""
    assert trim_stacks(dump).splitlines() == [
        "Fatal Python error: Segmentation fault",
        "Current thread 0x02 (most recent call first):",
        '  File "/home/me/test_it.py", line 6 in test_it',
        "Thread 0x01 (most recent call first):",
        '  File "sglang/srt/a.py", line 1 in a',
        '  File "sglang/srt/a.py", line 2 in b',
        '  File "c.py", line 3 in c',
        '  File "python3.11/queue.py", line 4 in d',
        '  File "/home/me/checkout/e.py", line 5 in e',
    ]
