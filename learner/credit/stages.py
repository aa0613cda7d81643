"""When the estimator learns: beside the policy, or in stages (`credit.schedule`): explore, fit the estimator, train the policy."""

from collections.abc import Mapping
from typing import Any

from learner.credit.estimator import Estimator
from learner.credit.settings import CreditSettings


class Stage:
    """Where a run stands; without an estimator there are no stages."""

    def __init__(self, settings: CreditSettings, estimator: Estimator[Any] | None) -> None:
        self._settings = settings
        self._estimator = estimator
        self._explored = 0
        self.exploring = settings.schedule == "staged" and estimator is not None
        """The policy does not learn yet."""

    def learn(self) -> None:
        """The estimator's part of an update of the policy; nothing where it was fitted in a stage of its own."""
        if self._estimator is not None and self._settings.schedule == "online":
            self._estimator.learn(self._settings.steps_per_update)

    def explored(self, steps: int) -> None:
        """Counts exploration; fits the estimator when there is enough of it and both outcomes came, and ends that stage."""
        self._explored += steps
        estimator, settings = self._estimator, self._settings
        if estimator is None or self._explored < settings.explore_steps or not estimator.ready:
            return
        estimator.learn(settings.estimate_steps)
        if settings.estimate_steps % settings.publish_every:
            estimator.publish()
        self.exploring = False

    def metrics(self) -> dict[str, float]:
        return {"progress/exploring": float(self.exploring)} if self._settings.schedule == "staged" else {}

    def state_dict(self) -> dict[str, Any]:
        return {"explored": self._explored, "exploring": self.exploring}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._explored, self.exploring = state["explored"], state["exploring"]
