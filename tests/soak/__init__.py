"""The net: long, seeded runs that look for crashes, hangs and divergences. See docs/testing.md."""
