"""The pure half of a transfer: state machines of sender and receiver, send order, lane count.

Nothing in here does I/O, waits or reads a clock; time is an argument. Production and the simulator run this same code.
"""
