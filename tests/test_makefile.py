"""What `make` does on machines that are not this one: pretended with programs of the same names."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKE = shutil.which("make")
TOOLS = ("awk", "cat", "chmod", "cp", "find", "head", "mkdir", "rm", "touch")

pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")

# Runs what the Makefile asks a Python about itself, with something changed first.
ASKED = '#!/bin/sh\nexec "{real}" -c \'import sys, platform; {change}; exec(sys.argv[2])\' "$@"\n'
GOOD = 'platform.libc_ver = lambda: ("glibc", "2.36")'
# A Python that will do. In its virtual environments, programs write down how they were called.
WORKING = """#!/bin/sh
test "$1" = -c && exit
echo "venv by ${0##*/}" >>log
mkdir -p .venv/bin
cat >.venv/bin/python <<'END'
#!/bin/sh
test "$1" = -c && { echo 1.2.3; exit; }
test -e offline && exit 1
shift 3
echo "pip $*" >>log
END
cat >.venv/bin/jackfield <<'END'
#!/bin/sh
echo "jackfield $* $JACKFIELD_PORT" >>log
END
cat >.venv/bin/coverage <<'END'
#!/bin/sh
echo "coverage $*" >>log
END
chmod +x .venv/bin/*
"""


@dataclass
class Checkout:
    """A clone with nothing made in it, on a machine with just the programs put into ``bin``."""

    folder: Path
    bin: Path

    def program(self, name: str, text: str) -> None:
        """Put a program on this machine."""
        file = self.bin / name
        file.write_text(text)
        file.chmod(0o755)

    def machine(self, system: str, processor: str) -> None:
        """Say what `uname` tells."""
        answers = f'case "$1" in -s) echo {system};; -m) echo {processor};; -sm) echo {system} {processor};; esac'
        self.program("uname", f"#!/bin/sh\n{answers}\n")

    def make(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run make as a user would."""
        return subprocess.run(
            [str(MAKE), *arguments],
            cwd=self.folder,
            env={"PATH": str(self.bin), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def log(self) -> list[str]:
        """What the pretended programs were asked to do."""
        file = self.folder / "log"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [line.replace("--disable-pip-version-check ", "") for line in lines]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """An x86-64 Linux machine without a GPU and without Python; the path has a space in it."""
    made = Checkout(tmp_path / "a clone", tmp_path / "bin")
    made.folder.mkdir()
    made.bin.mkdir()
    shutil.copy(ROOT / "Makefile", made.folder)
    shutil.copy(ROOT / "pyproject.toml", made.folder)
    for tool in TOOLS:
        (made.bin / tool).symlink_to(str(shutil.which(tool)))
    made.machine("Linux", "x86_64")
    return made


def changed(change: str) -> str:
    return ASKED.format(real=sys.executable, change=change)


TOO_OLD = changed('sys.version_info, sys.version = (3, 9, 2), "3.9.2 (fake)"')
NO_VENV = changed(GOOD + '; sys.modules["ensurepip"] = None')
OLD_LIBC = changed('platform.libc_ver = lambda: ("glibc", "2.31"); sys.platform = "linux"')


@pytest.mark.parametrize(
    ("python", "told"),
    [
        ("", "Python 3.11 or newer is needed, and there is no python3 here"),
        (TOO_OLD, "Python 3.11 or newer is needed, and this is 3.9.2"),
        (NO_VENV, "it has no venv (Debian and Ubuntu: apt install python3-venv)"),
        (OLD_LIBC, "MLX needs glibc 2.35 or newer, and this is glibc 2.31"),
        ("#!/bin/sh\necho broken >&2\nexit 127\n", "python3 will not do: broken"),
    ],
    ids=["none", "too old", "no venv", "old libc", "broken"],
)
def test_a_python_that_will_not_do_is_named_in_one_line(checkout: Checkout, python: str, told: str) -> None:
    if python:
        checkout.program("python3", python)
    done = checkout.make("serve")
    assert done.returncode != 0
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (checkout.folder / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "machine", "told"),
    [
        (["PYTHON=/no/python"], ("Linux", "x86_64"), "there is no /no/python here"),
        (["MLX=nonsense"], ("Linux", "x86_64"), "MLX=nonsense is none of metal, cuda13, cuda12, mkl, cpu"),
        (
            [],
            ("Darwin", "x86_64"),
            "MLX runs on Apple silicon and on x86-64 or aarch64 Linux, and this is Darwin x86_64",
        ),
    ],
)
def test_a_wrong_choice_or_machine_is_named_in_one_line(
    checkout: Checkout, arguments: list[str], machine: tuple[str, str], told: str
) -> None:
    checkout.program("python3", WORKING)
    checkout.machine(*machine)
    done = checkout.make("serve", *arguments)
    assert done.returncode != 0
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_serve_installs_once_and_again_when_the_project_changes(checkout: Checkout) -> None:
    checkout.program("python3", WORKING)
    first = checkout.make("serve", "ARGS=--model m", JACKFIELD_PORT="81")
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines() == [
        "Making .venv with python3 ...",
        "Installing Jackfield with MLX for the CPU and MKL, a fast BLAS (1.3 GB on disk, once) ...",
    ]
    assert checkout.log == ["venv by python3", "pip -q install -e .[mkl]", "jackfield serve --model m 81"]
    again = checkout.make("serve")
    assert (again.stdout, checkout.log) == ("", ["jackfield serve "])
    plugin = checkout.folder / "plugins" / "jackfield-new"
    plugin.mkdir(parents=True)
    (plugin / "pyproject.toml").touch()
    assert checkout.make("serve").returncode == 0
    assert checkout.log == ["pip -q install -e .[mkl] -e ./plugins/jackfield-new", "jackfield serve "]
    checkout.make("test")
    assert checkout.log[0] == "pip -q install -e .[test,lint,mkl] -e ./plugins/jackfield-new[test]"


@pytest.mark.parametrize(
    ("target", "arguments", "run"),
    [
        ("test", [], "-n 2 --dist loadfile --no-loadscope-reorder"),
        ("test", ["WORKERS=4"], "-n 4 --dist loadfile --no-loadscope-reorder"),
        ("test", ["WORKERS=1"], ""),
        ("test", ["WORKERS=0"], ""),
        ("test", ["ARGS=tests/test_x.py -x"], "tests/test_x.py -x"),
        ("test", ["ARGS=-x", "WORKERS=3"], "-n 3 --dist loadfile --no-loadscope-reorder -x"),
        ("test-plugins", [], "-n 2 --dist loadfile --no-loadscope-reorder plugins"),
        ("test-plugins", ["ARGS=-k apns"], "plugins -k apns"),
    ],
)
def test_tests_run_on_two_workers_unless_some_are_picked_out(
    checkout: Checkout, target: str, arguments: list[str], run: str
) -> None:
    checkout.program("python3", WORKING)
    assert checkout.make(target, *arguments).returncode == 0
    folder = "plugins" if target == "test-plugins" else "server"
    limit = " --fail-under=0" if "ARGS" in "".join(arguments) else ""
    assert checkout.log[2:] == [
        "coverage erase",
        f"coverage run -m pytest {run}".rstrip(),
        "coverage combine -q",
        f"coverage report --include={folder}/*{limit}",
    ]


@pytest.mark.parametrize(
    ("machine", "driver", "installed"),
    [
        (("Darwin", "arm64"), None, ["pip -q install -e ."]),
        (("Linux", "aarch64"), None, ["pip -q install -e ."]),
        (("Linux", "x86_64"), "NVIDIA-SMI has failed", ["pip -q install -e .[mkl]"]),
        (("Linux", "x86_64"), "470.82.01", ["pip -q install -e .[mkl]"]),
        (("Linux", "x86_64"), "550.54.14", ["mlx-cuda-12==1.2.3"]),
        (("Linux", "aarch64"), "580.95.05\n580.95.05", ["mlx-cuda-13==1.2.3"]),
    ],
)
def test_the_machine_decides_which_mlx(
    checkout: Checkout, machine: tuple[str, str], driver: str | None, installed: list[str]
) -> None:
    checkout.program("python3", WORKING)
    checkout.machine(*machine)
    if driver:
        checkout.program("nvidia-smi", f'#!/bin/sh\necho "{driver}"\n')
    assert checkout.make("serve").returncode == 0
    _, *pip, _ = checkout.log
    if "cuda" in installed[0]:
        installed = [
            "pip -q install -e .",
            "pip -q -qq uninstall -y mlx-cpu mlx-cuda-12 mlx-cuda-13",
            f"pip -q install {installed[0]}",
        ]
    assert pip == installed


def test_a_newer_python_beside_an_old_one_is_taken(checkout: Checkout) -> None:
    checkout.program("python3", TOO_OLD)
    checkout.program("python3.13", NO_VENV)
    checkout.program("python3.12", WORKING)
    assert checkout.make("serve").returncode == 0
    assert checkout.log[0] == "venv by python3.12"


def test_a_choice_of_mlx_is_kept_apart(checkout: Checkout) -> None:
    checkout.program("python3", WORKING)
    checkout.make("serve")
    assert checkout.log[1] == "pip -q install -e .[mkl]"
    checkout.make("serve", "MLX=cpu")
    assert checkout.log == ["pip -q install -e .", "jackfield serve "]
    checkout.make("serve")
    assert checkout.log == ["pip -q install -e .[mkl]", "jackfield serve "]


def test_a_failed_installation_is_tried_again(checkout: Checkout) -> None:
    checkout.program("python3", WORKING)
    offline = checkout.folder / "offline"
    offline.touch()
    assert checkout.make("serve").returncode != 0
    offline.unlink()
    assert checkout.make("serve").returncode == 0
    assert checkout.log == ["venv by python3", "pip -q install -e .[mkl]", "jackfield serve "]


def test_clients_are_installed_once_and_again_when_their_versions_change(checkout: Checkout) -> None:
    pins = checkout.folder / "tests" / "clients"
    pins.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        (pins / name).write_text("{}")
    target = ".build/clients/node/.installed"
    assert "npm is needed, and is not here (Debian and Ubuntu: apt install npm)" in checkout.make(target).stderr
    checkout.program("npm", f'#!/bin/sh\necho "npm $1" >>"{checkout.folder}/log"\n')
    for installed in (["npm install"], []):
        assert checkout.make(target).returncode == 0
        assert checkout.log == installed
    os.utime(pins / "package-lock.json", (time.time() + 9, time.time() + 9))
    checkout.make(target)
    assert checkout.log == ["npm install"]


def test_help_lists_every_target_and_dry_runs_do_nothing(checkout: Checkout) -> None:
    listed = checkout.make()
    assert [line.split()[1] for line in listed.stdout.splitlines()] == [
        "help",
        "serve",
        "test",
        "test-plugins",
        "test-clients",
        "test-seed",
        "test-system",
        "test-load",
        "test-compliance",
        "test-peers",
        "test-group",
        "test-faults",
        "soak",
        "lint",
        "bench",
        "bench-engine",
        "bench-sockets",
        "clean",
    ]
    checkout.program("python3", WORKING)
    assert checkout.make("-n", "serve").returncode == 0
    assert checkout.log == []
    assert not (checkout.folder / ".venv").exists()
