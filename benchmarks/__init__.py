"""Measurements: Metric records, peers in the same run, hardware named."""
