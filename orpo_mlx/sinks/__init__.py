"""Sinks: a run's metrics in other programs, sent by callbacks that never end the run."""
