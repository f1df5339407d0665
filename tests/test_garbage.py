"""What the garbage collector is spared, seen from processes of their own: pytest's objects are not to be frozen."""

import subprocess
import sys


def told(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_what_is_made_meanwhile_is_never_looked_at_again() -> None:
    code = """
import gc
from jackfield.cli.garbage import kept
try:
    with kept():
        inside = [[]]
        print(gc.isenabled())
        raise OSError
except OSError:
    outside = [[]]
looked_at = {id(one) for one in gc.get_objects()}
print(gc.isenabled(), id(inside) in looked_at, id(outside) in looked_at)
"""
    assert told(code).split() == ["False", "True", "False", "True"]


def test_a_command_ends_without_taking_everything_apart() -> None:
    """Whoever registers first is called last, when the command's own wish has been heard."""
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 0))
from jackfield.cli import main
main(["config", "path"], standalone_mode=False)
"""
    assert told(code).splitlines()[-1] == "True"
