"""Traces of requests: what a row is, the formats that are read, statistics. Known to load generators and simulator."""
