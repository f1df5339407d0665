"""The README's example does what it says."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def test_the_two_commands_come_first():
    first, second = re.search(r"```sh\n(.*?)```", README, re.DOTALL)[1].strip().splitlines()
    assert first.startswith("make serve")
    assert second == "make test"


def test_the_python_example_runs(starter_server):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "http://127.0.0.1:8080/v1" in code
    # Made short: the example itself lets the model talk as long as it likes.
    code = code.replace("http://127.0.0.1:8080/v1", starter_server.api).replace(
        "stream=True", "stream=True, max_tokens=8"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
