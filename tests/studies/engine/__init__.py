"""Tests of the engine of studies."""
