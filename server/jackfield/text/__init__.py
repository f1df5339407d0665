"""From token events to text events. Pure: no I/O, no engine, no HTTP."""
