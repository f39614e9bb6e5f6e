"""Tests of `peftcli.models.targets`."""
