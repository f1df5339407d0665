"""``python -m jackfield``."""

from jackfield.cli import main

main()
