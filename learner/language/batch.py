"""Token sequences of language-model episodes, packed end to end without padding.

Four kinds of rows, each with its letter in the shapes: N tokens, M *action tokens* (those that the policy sampled),
K turns, S sequences, E episodes. A **sequence** is what the model reads at once. An **episode** is one sequence, or
several where the history did not fit or was rewritten; a turn is sampled in exactly one of them. Sequences of an
episode, its turns and their tokens lie in the order in which they happened.

**Alignment.** What belongs to token n was read from the model's output at n − 1: its log-probability, the entropy of
the distribution that it was drawn from, and the value of the state before it. So the first token of a sequence is
never an action. `ActionTokens.predictor` is n − 1; nothing else in this package shifts an index.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import pad

from agents.sizes import few_sizes
from learner.language.segments import first_of_runs, last_of_runs, segment_sum


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    """L tokens that the model read at once: prompt, actions and observations, as they were sampled and sent."""

    tokens: Tensor
    """[L] int64."""
    action: Tensor
    """[L] bool: the policy sampled this token."""
    turn: Tensor
    """[L] int64: turn of the episode, from 0; −1 where a token belongs to none. Read at action tokens only."""
    behaviour_log_prob: Tensor
    """[L] float32: log μ(token | all before it) as it was sampled, at the sampling temperature. Read at actions only."""


@dataclass(frozen=True, slots=True)
class EpisodeTokens:
    """One episode before packing."""

    sequences: tuple[TokenSequence, ...]
    versions: tuple[int, ...]
    """Version of the weights that sampled each turn, one for each turn."""
    terminated: bool
    """The episode ended by the rules of the world. False: it was cut (a time limit, a full context)."""
    group: int = 0
    """Episodes of one group began in the same task and seed; what GRPO and RLOO compare."""


@dataclass(frozen=True, slots=True)
class ActionTokens:
    """Where the M action tokens of a batch are. `turn` never falls, and every turn has at least one."""

    position: Tensor
    """[M] int64: their index among the N tokens, rising."""
    turn: Tensor
    """[M] int64: row of their turn, 0..K − 1."""
    episode: Tensor
    """[M] int64: row of their episode, 0..E − 1."""
    turns: int
    episodes: int
    longest: int
    """Action tokens of the longest episode."""

    def __len__(self) -> int:
        return len(self.position)

    @property
    def predictor(self) -> Tensor:
        """[M]: the position whose output predicted each of them."""
        return self.position - 1

    @property
    def first_of_turn(self) -> Tensor:
        """[M] bool. What is read at a turn's first token belongs to the state in which the turn began."""
        return first_of_runs(self.turn)

    @property
    def last_of_turn(self) -> Tensor:
        """[M] bool."""
        return last_of_runs(self.turn)

    @property
    def last_of_episode(self) -> Tensor:
        """[M] bool."""
        return last_of_runs(self.episode)

    def on_last_token(self, x: Tensor) -> Tensor:
        """[M]: x [K] on the last action token of each turn, 0 elsewhere."""
        return torch.where(self.last_of_turn, x[self.turn], torch.zeros((), dtype=x.dtype, device=x.device))

    def sum_by_turn(self, x: Tensor) -> Tensor:
        """[K]: sums of x [M]."""
        return segment_sum(x, self.turn, self.turns)

    def sum_by_episode(self, x: Tensor) -> Tensor:
        """[E]: sums of x [M]; 0 for an episode without an action."""
        return segment_sum(x, self.episode, self.episodes)


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Some whole sequences of a batch, for one forward pass."""

    tokens: Tensor
    """[n] int64."""
    offsets: Tensor
    """[s + 1] int64: where each sequence begins, and n."""
    predictor: Tensor
    """[m] int64: positions in `tokens` whose outputs predict the action tokens."""
    target: Tensor
    """[m] int64: the action tokens that they predict."""
    rows: Tensor
    """[m] int64: which of the whole batch's M action tokens they are."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedTokens:
    """What the model reads of a batch: S sequences, end to end."""

    tokens: Tensor
    """[N] int64."""
    offsets: Tensor
    """[S + 1] int64: where each sequence begins, and N."""
    action: Tensor
    """[N] bool: the policy sampled this token."""

    @property
    def sequences(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """[S] int64."""
        return self.offsets.diff()

    def take(self, sequences: Tensor) -> MicroBatch:
        """The sequences of these rows [s], in this order."""
        offsets, index = self._index(sequences)
        position = self.action[index].nonzero().squeeze(1)
        rank = self.action.cumsum(0) - 1
        tokens = self.tokens[index]
        return MicroBatch(tokens, offsets, position - 1, tokens[position], rank[index[position]])

    def part(self, sequences: Tensor) -> "tuple[PackedTokens, Tensor]":
        """The sequences of these rows [s] as a batch of their own, and [m] which of the M action tokens are theirs."""
        offsets, index = self._index(sequences)
        action = self.action[index]
        rank = self.action.cumsum(0) - 1
        return PackedTokens(self.tokens[index], offsets, action), rank[index[action]]

    def _index(self, sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Where these sequences begin once they lie end to end, and where each of their tokens lies now."""
        lengths = self.lengths[sequences]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        index = torch.arange(int(offsets[-1]), device=self.tokens.device)
        return offsets, index + (self.offsets[:-1][sequences] - offsets[:-1]).repeat_interleave(lengths)


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """E episodes, packed. Made by `pack`, which checks the contents; the constructor checks lengths alone."""

    tokens: Tensor
    """[N] int64."""
    offsets: Tensor
    """[S + 1] int64: where each sequence begins, and N (`cu_seqlens` of variable-length attention)."""
    action: Tensor
    """[N] bool: the policy sampled this token."""
    turn: Tensor
    """[N] int64: row of the token's turn, 0..K − 1; −1 where it belongs to none."""
    behaviour_log_prob: Tensor
    """[N] float32: log μ(token n | tokens before n); only read at action tokens."""
    sequence_episode: Tensor
    """[S] int64: row of each sequence's episode."""
    turn_episode: Tensor
    """[K] int64: row of each turn's episode."""
    version: Tensor
    """[K] int64: version of the weights that sampled each turn."""
    terminated: Tensor
    """[E] bool: the episode ended by the rules of its world; otherwise it was cut."""
    group: Tensor
    """[E] int64: id of the group that the episode is compared within."""

    def __post_init__(self) -> None:
        for one, other in (
            ("action", "tokens"),
            ("turn", "tokens"),
            ("behaviour_log_prob", "tokens"),
            ("version", "turn_episode"),
            ("group", "terminated"),
        ):
            left, right = getattr(self, one).shape, getattr(self, other).shape
            if left != right or len(left) != 1:
                raise ValueError(f"{one} {tuple(left)} and {other} {tuple(right)} of a TokenBatch differ in shape")
        if len(self.offsets) != len(self.sequence_episode) + 1:
            raise ValueError(
                f"a TokenBatch of {len(self.sequence_episode)} sequences has {len(self.sequence_episode) + 1} offsets, "
                f"not {len(self.offsets)}"
            )

    @property
    def episodes(self) -> int:
        return len(self.terminated)

    @property
    def turns(self) -> int:
        return len(self.version)

    @property
    def sequences(self) -> int:
        return len(self.sequence_episode)

    @property
    def lengths(self) -> Tensor:
        """[S] int64."""
        return self.offsets.diff()

    @property
    def sequence(self) -> Tensor:
        """[N] int64: row of each token's sequence."""
        rows = torch.arange(self.sequences, device=self.tokens.device)
        return rows.repeat_interleave(self.lengths, output_size=len(self.tokens))

    @property
    def final_position(self) -> Tensor:
        """[E] int64: the last token of each episode, where the value of its final state is read (the bootstrap)."""
        return self.offsets[1:][last_of_runs(self.sequence_episode)] - 1

    def actions(self) -> ActionTokens:
        """Where the action tokens are."""
        position = self.action.nonzero().squeeze(1)
        turn = self.turn[position]
        episode = self.turn_episode[turn]
        counts = torch.bincount(episode, minlength=1)
        return ActionTokens(position, turn, episode, self.turns, self.episodes, int(counts.max()))

    def take(self, sequences: Tensor) -> MicroBatch:
        """The sequences of these rows [s], in this order."""
        return self.packed.take(sequences)

    @property
    def packed(self) -> PackedTokens:
        """What the model reads of it."""
        return PackedTokens(self.tokens, self.offsets, self.action)

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on another device."""
        return TokenBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def pack(episodes: Sequence[EpisodeTokens]) -> TokenBatch:
    """Packs episodes in their order. Raises `ValueError`, naming the episode, for contents that cannot be learned from.

    Turns are counted through: turn k of an episode becomes row k + (turns of the episodes before it).
    """
    if not episodes:
        raise ValueError("there is no episode to pack")
    turn_rows: list[Tensor] = []
    turns = 0
    for number, episode in enumerate(episodes):
        _check_episode(f"episode {number}", episode)
        turn_rows += [torch.where(s.turn >= 0, s.turn + turns, s.turn) for s in episode.sequences]
        turns += len(episode.versions)
    sequences = [sequence for episode in episodes for sequence in episode.sequences]
    rows = torch.arange(len(episodes))
    return TokenBatch(
        tokens=torch.cat([s.tokens for s in sequences]),
        offsets=torch.tensor([0] + [len(s.tokens) for s in sequences]).cumsum(0),
        action=torch.cat([s.action for s in sequences]),
        turn=torch.cat(turn_rows),
        behaviour_log_prob=torch.cat([s.behaviour_log_prob for s in sequences]),
        sequence_episode=rows.repeat_interleave(torch.tensor([len(e.sequences) for e in episodes])),
        turn_episode=rows.repeat_interleave(torch.tensor([len(e.versions) for e in episodes])),
        version=torch.tensor([version for e in episodes for version in e.versions], dtype=torch.int64),
        terminated=torch.tensor([e.terminated for e in episodes]),
        group=torch.tensor([e.group for e in episodes], dtype=torch.int64),
    )


def unpack(batch: TokenBatch) -> list[EpisodeTokens]:
    """The episodes of a batch: the inverse of `pack`."""
    bounds, versions = batch.offsets.tolist(), batch.version.tolist()
    sequences_of = torch.bincount(batch.sequence_episode, minlength=batch.episodes).tolist()
    turns_of = torch.bincount(batch.turn_episode, minlength=batch.episodes).tolist()
    episodes: list[EpisodeTokens] = []
    first_sequence = first_turn = 0
    for row, (sequences, turns) in enumerate(zip(sequences_of, turns_of, strict=True)):
        next_sequence, next_turn = first_sequence + sequences, first_turn + turns
        episode = EpisodeTokens(
            sequences=tuple(
                _sequence(batch, bounds[s], bounds[s + 1], first_turn) for s in range(first_sequence, next_sequence)
            ),
            versions=tuple(versions[first_turn:next_turn]),
            terminated=bool(batch.terminated[row]),
            group=int(batch.group[row]),
        )
        episodes.append(episode)
        first_sequence, first_turn = next_sequence, next_turn
    return episodes


def _sequence(batch: TokenBatch, low: int, high: int, first_turn: int) -> TokenSequence:
    turn = batch.turn[low:high]
    return TokenSequence(
        tokens=batch.tokens[low:high],
        action=batch.action[low:high],
        turn=torch.where(turn >= 0, turn - first_turn, turn),
        behaviour_log_prob=batch.behaviour_log_prob[low:high],
    )


def filler(count: int, device: torch.device) -> int:
    """How many rows that nobody reads make `count` one of few sizes. None on a GPU, whose libraries keep no kernel a size."""
    return few_sizes(count) - count if device.type == "cpu" else 0


def filled(tokens: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Packed `tokens` [n], of sequences that begin at `offsets` [s + 1], and behind them sequences of filler, none longer
    than those that are there."""
    missing = filler(len(tokens), tokens.device)
    if not missing:
        return tokens, offsets
    longest = int(offsets.diff().max())
    ends = [min(end, missing) for end in range(longest, missing + longest, longest)]
    return pad(tokens, (0, missing)), torch.cat([offsets, len(tokens) + offsets.new_tensor(ends)])


def position_ids(offsets: Tensor) -> Tensor:
    """[n] int64: the position of each token within its sequence, of sequences that begin at `offsets` [s + 1]."""
    lengths = offsets.diff()
    index = torch.arange(int(offsets[-1]), device=offsets.device)
    return index - offsets[:-1].repeat_interleave(lengths)


def _check_episode(name: str, episode: EpisodeTokens) -> None:
    if not episode.sequences:
        raise ValueError(f"{name} has no sequence")
    for number, sequence in enumerate(episode.sequences):
        _check_sequence(f"{name}, sequence {number}", sequence)
    sampled = torch.cat([sequence.turn[sequence.action] for sequence in episode.sequences])
    found = sampled.unique_consecutive().tolist()
    if found != list(range(len(episode.versions))):
        raise ValueError(
            f"{name} has {len(episode.versions)} versions, so its action tokens must be of turns 0 to "
            f"{len(episode.versions) - 1} in this order; they are of turns {found}"
        )


def _check_sequence(name: str, sequence: TokenSequence) -> None:
    length = len(sequence.tokens)
    for what in ("tokens", "action", "turn", "behaviour_log_prob"):
        shape = tuple(getattr(sequence, what).shape)
        if shape != (length,):
            raise ValueError(f"{name}: {what} has the shape {shape}, not ({length},)")
    if length == 0:
        raise ValueError(f"{name} has no token")
    if bool(sequence.action[0]):
        raise ValueError(f"{name} begins with an action token, which nothing predicts; put its prompt before it")
    log_prob = sequence.behaviour_log_prob[sequence.action]
    # Rounding in an engine's softmax may leave a hair above 0.
    wrong = ~(log_prob.isfinite() & (log_prob <= 1e-3))
    if bool(wrong.any()):
        raise ValueError(f"{name}: {log_prob[wrong][0].item()} is no log-probability of a token that was sampled")
