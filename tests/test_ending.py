"""How a run ends: two lines after Ctrl-C and SIGTERM, one where the disk is full or may not be written to."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest
from scripts.ending import ENDS_WITH_STDIN

PROGRAM = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from scripts.ending import end_clearly, when_interrupted
end_clearly("The same command goes on.")
when_interrupted(lambda: print("closed", file=sys.stderr))
if {number}:
    os.kill(os.getpid(), {number})
    time.sleep(60)
try:
    raise OSError({error}, os.strerror({error}), "/data/out.png")
except OSError as error:
    raise RuntimeError("wrapped") from error
"""


def end(bundle_root, number: int, error: int = errno.ENOSPC) -> tuple[int, list[str]]:
    program = PROGRAM.format(root=str(bundle_root), number=number, error=error)
    # what a shell starts in the background ignores SIGINT, and so does all that it starts
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=heed)
    return done.returncode, done.stderr.strip().splitlines()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruptions_end_in_two_lines(bundle_root, number):
    code, lines = end(bundle_root, int(number))
    assert code != 0 and lines[0] == "closed"
    assert [line for line in lines[1:] if line][1:] == ["The same command goes on."] and "kept" in " ".join(lines)


def test_a_full_disk_is_one_line(bundle_root):
    code, lines = end(bundle_root, 0)
    assert code == 1 and lines == ["Error: the disk is full (/data/out.png). Make room. The same command goes on."]


def test_a_place_that_may_not_be_written_to_is_one_line(bundle_root):
    code, lines = end(bundle_root, 0, errno.EROFS)
    told = "Error: /data/out.png: Read-only file system. Choose another place, or change its rights."
    assert code == 1 and lines == [told]


def test_a_verb_ends_with_the_process_that_started_it(bundle_root):
    """However that one ends, even by SIGKILL, which closes the pipe."""
    start = f"import sys, time; sys.path.insert(0, {str(bundle_root)!r}); from scripts.ending import end_clearly\n"
    program = start + "end_clearly('x'); print('ready', flush=True); time.sleep(600)"
    command, environment = [sys.executable, "-c", program], {**os.environ, ENDS_WITH_STDIN: "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"ready\n" and process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=60) == 1
