"""Tests of where a recipe comes from."""
