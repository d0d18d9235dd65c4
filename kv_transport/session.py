"""Pure state machine of a transfer."""
