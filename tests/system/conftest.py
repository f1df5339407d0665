"""Tests beside programs of the system (Prometheus, Chromium, systemd): they run where `make test-system` put those."""

import os

if "SYSTEM_TESTS" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
