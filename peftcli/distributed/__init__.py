"""Processes, devices and launching: the only room that knows of more than one device."""
