"""Tests of `peftcli.models.experts`."""
