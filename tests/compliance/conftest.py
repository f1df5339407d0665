"""Suites that nobody here wrote take minutes: these tests run as `make test-compliance` does."""

import os

if "COMPLIANCE_TESTS" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
