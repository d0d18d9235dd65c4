"""What any implementation of PrefillTransport is tested with: sources, sinks, harnesses, and the conformance suite.

It ships with the package, so that a transport written elsewhere can be held to the same contract.
"""
