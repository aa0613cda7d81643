"""Data-parallel learning of language models: the worker that leads, and those that follow (as `learner/team.py` for networks).

The leader has the queue, the rewards, the credit, advantages and targets, all that a learner alone has; checkpoints and weights
are its own. Of each batch it sends every follower some of the sequences, of about as many tokens; each reads its own before the
update and takes part in each optimisation step with those of its own that are in it. Gradients are added up before they are
clipped, so all take the same step, and followers hold nothing but model and optimiser.

    leader:   state (the first time) → tokens ← what was read → targets, minibatches ← what the steps saw
    follower: heed → the same messages in the same order
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from learner.language.batch import PackedTokens
from learner.language.objective import Targets
from learner.language.step import Evaluation, LanguageStep, Minibatch, Reading
from learner.language.trained import Trained
from learner.parallel import Group
from learner.team import TeamFollower, TeamLeader


class LanguageLeader(TeamLeader[LanguageStep]):
    """Leads the learner of a language model."""

    def __init__(self, group: Group, step: LanguageStep) -> None:
        super().__init__(group, step)
        self._sequences: list[Tensor] = []
        """Rows of each worker's sequences in the batch of this update."""
        self._parts: list[PackedTokens] = []
        self._rows: list[Tensor] = []
        """Of each worker's action tokens."""
        self._place: dict[int, tuple[int, int]] = {}
        """Whose each sequence is, and which of its owner's."""

    def evaluate(self, packed: PackedTokens, reading: Reading) -> Evaluation:
        """Has all sequences read, each by one of the workers. Begins an update, which `take` ends.

        Raises ValueError where there are more workers than sequences.
        """
        if packed.sequences < self._group.size:
            raise ValueError(
                f"a batch of {packed.sequences} sequences cannot be shared by learner.workers={self._group.size}; raise "
                "language.batch_episodes"
            )
        self._share(packed)
        self._call()
        for rank in self._followers:
            part = {field.name: getattr(self._parts[rank], field.name).cpu() for field in fields(PackedTokens)}
            self._group.send(rank, {"packed": part, "reading": asdict(reading)})
        found = [self._step.evaluate(self._parts[0], reading)]
        found += [Evaluation(**self._group.receive(rank)) for rank in self._followers]
        return self._whole(packed, found)

    def _share(self, packed: PackedTokens) -> None:
        """Each worker's sequences: the longest first to whoever has the fewest tokens."""
        lengths: list[int] = packed.lengths.tolist()
        tokens = [0] * self._group.size
        owned: list[list[int]] = [[] for _ in tokens]
        for row in sorted(range(packed.sequences), key=lambda i: (-lengths[i], i)):
            rank = min(range(len(tokens)), key=lambda r: (tokens[r], r))
            owned[rank].append(row)
            tokens[rank] += lengths[row]
        self._sequences = [torch.tensor(sorted(rows), device=packed.tokens.device) for rows in owned]
        shares = [packed.part(sequences) for sequences in self._sequences]
        self._parts = [part for part, _ in shares]
        self._rows = [rows for _, rows in shares]
        self._place = {
            row: (rank, place)
            for rank, sequences in enumerate(self._sequences)
            for place, row in enumerate(sequences.tolist())
        }

    def _state(self) -> Mapping[str, Any]:
        return self._step.state_dict()

    def _whole(self, packed: PackedTokens, found: list[Evaluation]) -> Evaluation:
        device, m = packed.tokens.device, int(packed.action.sum())
        whole = Evaluation(*(torch.zeros(size, device=device) for size in (m, m, m, packed.sequences)))
        for each, rows, sequences in zip(found, self._rows, self._sequences, strict=True):
            whole.log_prob[rows] = each.log_prob.to(device)
            whole.reference[rows] = each.reference.to(device)
            whole.value[rows] = each.value.to(device)
            whole.final_value[sequences] = each.final_value.to(device)
        return whole

    def take(self, targets: Targets, minibatches: list[Minibatch], reading: Reading) -> Trained:
        """The optimisation steps of the update that `evaluate` began, together with the followers."""
        for rank in self._followers:
            mine = {f.name: getattr(targets, f.name) for f in fields(Targets)}
            part = {name: None if x is None else x[self._rows[rank]].cpu() for name, x in mine.items()}
            steps = [asdict(minibatch) for minibatch in self._own(minibatches, rank)]
            self._group.send(rank, {"targets": part, "minibatches": steps})
        trained = self._step.take(self._parts[0], targets.take(self._rows[0]), self._own(minibatches, 0), reading)
        whole = Trained(len(targets.advantage), self._step.device)
        whole.norms = trained.norms
        for rank, rows in enumerate(self._rows):
            whole.take_in(rows, trained.state() if rank == 0 else self._group.receive(rank))
        return whole

    def _own(self, minibatches: list[Minibatch], rank: int) -> list[Minibatch]:
        """A worker's part of each step, by its own rows."""
        return [
            Minibatch([self._place[row][1] for row in each.rows if self._place[row][0] == rank], each.count)
            for each in minibatches
        ]


class LanguageFollower(TeamFollower[LanguageStep]):
    """Follows the leader of a language model's learner."""

    def _learn(self, message: dict[str, Any]) -> None:
        device = self._step.device
        packed = PackedTokens(**{name: x.to(device) for name, x in message["packed"].items()})
        reading = Reading(**message["reading"])
        found = self._step.evaluate(packed, reading)
        self._group.send(0, {field.name: getattr(found, field.name).cpu() for field in fields(Evaluation)})
        told = self._group.receive(0)
        of_targets: dict[str, Any] = {k: None if x is None else x.to(device) for k, x in told["targets"].items()}
        targets = Targets(**of_targets)
        minibatches = [Minibatch(**each) for each in told["minibatches"]]
        trained = self._step.take(packed, targets, minibatches, reading)
        self._group.send(0, trained.state())
