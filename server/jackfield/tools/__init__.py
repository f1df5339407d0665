"""Tool calls: what a request offers, how models write calls, and how these are found and enforced. Pure: no I/O."""
