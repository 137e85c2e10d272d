"""The demo: a small base, bundled pairs, before and after."""
