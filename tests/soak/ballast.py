"""Another program that takes memory: until so many bytes are left, and as long as its standard input is open."""

import sys

from jackfield.models.memory import host_memory

PIECE = 64 << 20


def main() -> None:
    """Take memory, say so, and keep it."""
    leave, held = int(sys.argv[1]), []
    while host_memory().available - PIECE > leave:
        # Filled, for memory that was never written to is not taken yet.
        held.append(b"\1" * PIECE)
    sys.stdout.write(f"{len(held) * PIECE}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
