"""What everybody gets in the company of many takes minutes: these tests run as `make test-load` does."""

import os

if "LOAD_TESTS" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
