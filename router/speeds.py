"""How fast each kind of worker prefills: from a profile at first, and from live measurements ever after. No clock."""

from __future__ import annotations

from collections.abc import Iterable

from prfaas.types import Role, SiteId
from router.policy.costs import Kind, Models, PrefillFit


class Speeds:
    """Running fits by kind of worker. Each measurement outweighs older ones, and so in time all of a profile."""

    def __init__(self) -> None:
        self._fits: dict[Kind, PrefillFit] = {}
        self._models: Models = {}

    @property
    def models(self) -> Models:
        """The model of each kind that enough is known of; another mapping after each change."""
        return self._models

    def seed(self, site: SiteId, points: Iterable[tuple[float, float]]) -> None:
        """Start a site's workers from a profile's points of (prompt tokens, seconds)."""
        for tokens, seconds in sorted(points):
            for role in Role:
                self.learn(Kind(site, role), round(tokens), 0, seconds)

    def learn(self, kind: Kind, new_tokens: int, cached_tokens: int, seconds: float) -> None:
        """Take the measurement of one prefill."""
        fit = self._fits.setdefault(kind, PrefillFit())
        fit.add(new_tokens, cached_tokens, seconds)
        model = fit.model()
        if model is not None:
            self._models = {**self._models, kind: model}
