"""Virtual-time simulation of the production policy, scheduler and cache code."""
