"""Fixtures for all tests: tiny checkpoints, running servers, one browser for the whole session."""

pytest_plugins = ["checkpoints", "servers", "browsers"]
