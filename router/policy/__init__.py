"""Routing decisions: pure functions of a request, a snapshot of the fleet and the time. No I/O, no clock, no locks."""
