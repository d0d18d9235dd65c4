"""The live page: what the deployment does right now, and a box to try the model. Its files need no build step."""
