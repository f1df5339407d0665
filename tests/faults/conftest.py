"""What the server survives. What takes longer than a moment runs when FAULT_SECONDS says how long the mixed load is to
be, as `make test-faults` does; there hypothesis looks for more, too."""

import os
import sys
from pathlib import Path

from hypothesis import settings

THOROUGH = "FAULT_SECONDS" in os.environ

LENGTHY = (
    "test_kill.py",
    "test_disk.py",
    "test_long_text.py",
    "test_many_connections.py",
    "test_mixed_load.py",
    "test_restless_clock.py",
)
collect_ignore = [] if THOROUGH else [*LENGTHY]
# Visitors and their watch are the soak's.
sys.path.append(str(Path(__file__).parent.parent / "soak"))

if THOROUGH:
    settings.register_profile("thorough", max_examples=2000)
    settings.load_profile("thorough")
