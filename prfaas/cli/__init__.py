"""The command line: `prfaas serve | demo | up | worker | route | chat | status | doctor`.

The roof of the house: it builds settings from flags, starts processes and draws on the terminal. It decides nothing
about requests, and imports torch and Ray only inside the processes that need them.
"""

from prfaas.cli.app import app, main

__all__ = ["app", "main"]
