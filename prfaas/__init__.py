"""Prefill-as-a-Service: the shared library under the router and the two services."""
