"""The learner's death, as a distributed run survives it.

Invariants, whatever dies when:

- A version of the policy is never that of two policies: the learner in the place of one that died counts on above the
  highest version that was published, though what it knows is older. Actors never get an older version than they have.
- An environment step is counted when it was played, once. What the dead learner had made of steps since the checkpoint is
  counted as lost: `samples_lost` = steps played − steps that a policy has learned from or will read.
- Trajectories that the dead learner had not answered are read by the next one. Where that dies too they are not read
  again, as one of them may be what kills it.
"""

import time
from collections.abc import Collection

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError

from orchestration import placement
from orchestration.calls import Actor
from orchestration.elastic import room
from orchestration.errors import ResourceError, WorkerDiedError, death, root_cause
from orchestration.preflight import check_learner_group
from orchestration.results import Floor, TakenOver
from orchestration.session import Session
from orchestration.watch import ray_state

_DEATHS_IN_A_ROW = 3
_NO_MACHINE_S = 5.0
"""Another learner is there sooner where there is room for it; and by then Ray knows which machines are gone."""
_NO_ROOM_S = 30.0
"""It has a machine's name, but its processors or GPUs are taken."""


class LearnerDeaths:
    """Counts and tells them; says when there were too many."""

    def __init__(self, session: Session, learner: str) -> None:
        """`learner`: the class of its process."""
        self._session = session
        self._learner = learner
        self._in_a_row = 0

    def died(self, error: RayActorError, worker: str = "") -> None:
        """Raises WorkerDiedError where it died again and again with no update in between. `worker`: the class of the process
        that died first, where that is another."""
        reason, learner = death(error), worker or self._learner
        self._in_a_row += 1
        if self._in_a_row >= _DEATHS_IN_A_ROW:
            raise WorkerDiedError(
                f"the learner ({learner}) died {self._in_a_row} times without an update in between: {reason}; "
                "--resume goes on from the newest checkpoint"
            ) from error
        self._session.faults.learner_restarts += 1
        self._session.record.learner_lost(reason)
        self._session.view.event(f"the learner ({learner}) died and is replaced: {reason}", warning=True)

    def died_at_start(self, error: RayActorError, worker: str = "") -> None:
        """The same before it had begun. Raises `error` where it raised, as another would."""
        if error.actor_init_failed:
            raise error
        self.died(error, worker)

    def updated(self) -> None:
        """The learner made progress."""
        self._in_a_row = 0

    @property
    def reads_again(self) -> bool:
        """Whether what the dead learner had not answered goes to the next one."""
        return self._in_a_row <= 1

    def floor(self, policy_version: int) -> Floor:
        """What the next learner counts on above; `policy_version` is the highest that was published."""
        return Floor(
            policy_version, self._session.learning.reward_model_version, self._session.learning.samples_dropped
        )

    def taken_over(self, taken: TakenOver, read: int) -> None:
        """The next learner has begun; `read`: steps that had been played then, without those that it reads again."""
        faults = self._session.faults
        before, faults.samples_lost = faults.samples_lost, max(faults.samples_lost, read - taken.samples)
        self._session.learning.policy_version = taken.policy_version
        self._session.record.learner_replaced(taken.policy_version)
        begin = "the beginning" if taken.checkpoint is None else taken.checkpoint
        self._session.view.event(
            f"the learner goes on from {begin} as policy v{taken.policy_version}; what it had learned from "
            f"{faults.samples_lost - before:,} steps is lost"
        )


class LearnerWait:
    """Says what a learner waits for that is to take another's place and has no machine to do so."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._since: float | None = None
        self._told = False
        self._look_at = 0.0

    @property
    def seconds(self) -> float:
        """How long it waits; 0 where it does not."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def look(self, *, waiting: bool) -> None:
        """`waiting`: whether it has not begun yet. May be called as often as one likes."""
        now = time.monotonic()
        if not waiting:
            self._since, self._told = None, False
            return
        self._since = now if self._since is None else self._since
        if self._told or now < max(self._since + _NO_MACHINE_S, self._look_at):
            return
        self._look_at = now + 1.0
        why = self._missing()
        if why is not None:
            self._told = True
            self._session.view.event(f"the learner waits for a machine: {why}", warning=True)

    def _missing(self) -> str | None:
        """What it waits for; None where it may be there in a moment."""
        try:
            check_learner_group(self._session.config, ray.cluster_resources())
        except ResourceError as error:
            return str(error)
        if self.seconds < _NO_ROOM_S:
            return None
        asked = placement.learner(self._session.config)
        return f"it has not begun for {self.seconds:.0f} s; it asks for {asked}, of which {ray.available_resources()} is free"


class ActorWait:
    """Counts the actors that have not begun yet, and says what they wait for where that is a machine."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._told = 0
        self._look_at = 0.0

    def look(self, actors: Collection[Actor]) -> None:
        """May be called as often as one likes."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + 1.0
        late = [a for a in actors if not a.answered and now - a.spawned_at > _NO_MACHINE_S]
        # One that has a process is only slow to start.
        waiting = sum(ray_state.place_of(actor.handle) is None for actor in late)
        self._session.actors_waiting = waiting
        if waiting > self._told:
            self._tell(len(actors), room(self._session.config, ray.nodes()))
        self._told = waiting

    def _tell(self, actors: int, fits: int) -> None:
        asked = placement.actor(self._session.config)
        why = (
            f"the cluster has room for {fits}"
            if fits < actors
            else f"each asks for {asked}, of which {ray.available_resources()} is free"
        )
        self._session.view.event(
            f"{self._session.actors_waiting} of {actors} actors wait for a machine: {why}", warning=True
        )


def lost_object(error: RayError) -> bool:
    """Whether a call failed because what it was to read is gone, with the machine that it was on."""
    return isinstance(error, ObjectLostError) or isinstance(root_cause(error), ObjectLostError)
