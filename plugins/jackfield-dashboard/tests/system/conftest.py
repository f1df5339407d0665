"""Tests in a browser: they run where `make test-system` put Chromium."""

import os

if "SYSTEM_TESTS" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
