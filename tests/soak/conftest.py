"""The soak test takes minutes: it runs when SOAK_SECONDS says how many, as `make soak` does."""

import os

collect_ignore = [] if "SOAK_SECONDS" in os.environ else ["test_soak.py", "test_pressure.py"]
