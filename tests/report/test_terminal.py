import subprocess
import sys

SCRIPT = """
from llmbench.report.terminal import Terminal
terminal = Terminal()
for _ in range(20000):
    terminal.print("a line that nobody reads")
raise SystemExit(3)
"""


def test_a_reader_that_stops_reading_changes_no_exit_status() -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"a line that nobody reads\n"
        process.stdout.close()
        assert process.wait(60) == 3
        assert process.stderr.read() == b""
