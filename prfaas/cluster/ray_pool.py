"""Worker pool on Ray."""

import ray as ray
