"""Packed token sequences: what is packed comes back, rows are where a walk over the tokens finds them, faults are told."""

import dataclasses
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.sizes import few_sizes
from learner.language.batch import EpisodeTokens, TokenSequence, filled, pack, position_ids, unpack
from learner.language.log_probs import scores_from_logits
from tests.language_support import action_rows, random_batch, random_episode, sequence


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), episodes=st.integers(1, 5), empty=st.booleans())
def test_what_is_packed_comes_back(seed, episodes, empty):
    rng = random.Random(seed)
    before = [random_episode(rng, group=rng.randrange(3)) for _ in range(episodes)]
    if empty:
        before.insert(rng.randrange(episodes + 1), random_episode(rng, turns=0))
    after = unpack(pack(before))
    assert len(after) == len(before)
    for one, other in zip(before, after, strict=True):
        assert (one.versions, one.terminated, one.group) == (other.versions, other.terminated, other.group)
        assert len(one.sequences) == len(other.sequences)
        for a, b in zip(one.sequences, other.sequences, strict=True):
            for field in dataclasses.fields(TokenSequence):
                assert torch.equal(getattr(a, field.name), getattr(b, field.name))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), episodes=st.integers(1, 5))
def test_rows_of_action_tokens(seed, episodes):
    batch = random_batch(seed, episodes)
    actions = batch.actions()
    rows = action_rows(batch)
    assert list(zip(actions.episode.tolist(), actions.turn.tolist(), strict=True)) == rows
    turns = [turn for _, turn in rows]
    assert actions.first_of_turn.tolist() == [turn not in turns[:i] for i, turn in enumerate(turns)]
    assert actions.last_of_turn.tolist() == [turn not in turns[i + 1 :] for i, turn in enumerate(turns)]
    assert actions.longest == max(sum(e == episode for e, _ in rows) for episode in range(episodes))
    x = torch.arange(1.0, len(rows) + 1)
    assert actions.sum_by_turn(x).tolist() == [
        sum(i + 1 for i, t in enumerate(turns) if t == k) for k in range(batch.turns)
    ]
    placed = actions.on_last_token(torch.arange(1.0, batch.turns + 1))
    assert torch.equal(actions.sum_by_turn(placed), torch.arange(1.0, batch.turns + 1))
    assert (placed != 0).sum() == batch.turns


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), episodes=st.integers(1, 5))
def test_micro_batches_are_whole_sequences(seed, episodes):
    batch = random_batch(seed, episodes)
    order = torch.tensor(random.Random(seed).sample(range(batch.sequences), batch.sequences))
    cut = batch.sequences // 2
    rows: list[int] = []
    for chosen in (order[:cut], order[cut:]):
        micro = batch.take(chosen)
        pieces = [batch.tokens[batch.offsets[s] : batch.offsets[s + 1]] for s in chosen]
        assert micro.tokens.tolist() == [token for piece in pieces for token in piece.tolist()]
        assert position_ids(micro.offsets).tolist() == [i for piece in pieces for i in range(len(piece))]
        assert torch.equal(micro.tokens[micro.predictor + 1], micro.target)
        assert torch.equal(batch.tokens[batch.actions().position[micro.rows]], micro.target)
        rows += micro.rows.tolist()
    assert sorted(rows) == list(range(len(batch.actions())))
    assert batch.sequence.tolist() == [s for s in range(batch.sequences) for _ in range(int(batch.lengths[s]))]


def test_a_tokens_log_prob_is_read_one_before_it():
    """A model whose next token depends on the present one alone: its log-probabilities can be read off a table."""
    table = torch.randn(11, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = random_batch(5, episodes=4)
    micro = batch.take(torch.arange(batch.sequences))
    outputs = table[micro.tokens]
    found = scores_from_logits(outputs[micro.predictor], micro.target).log_prob
    expected = []
    for episode in unpack(batch):
        for part in episode.sequences:
            tokens = part.tokens.tolist()
            for n in range(1, len(tokens)):
                if part.action[n]:
                    row = table[tokens[n - 1]]
                    expected.append((row[tokens[n]].exp() / row.exp().sum()).log())
    torch.testing.assert_close(found, torch.stack(expected))


def test_the_last_token_of_each_episode():
    first = sequence([(1, False, 0, 0.0), (2, True, 0, -1.0)])
    second = sequence([(3, False, 1, 0.0), (4, True, 1, -1.0), (5, False, -1, 0.0)])
    batch = pack([EpisodeTokens((first, second), (0, 0), False), EpisodeTokens((first,), (0,), True)])
    assert batch.final_position.tolist() == [4, 6]
    assert batch.tokens[batch.final_position].tolist() == [5, 2]
    assert position_ids(batch.offsets).tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert batch.to("cpu").tokens.tolist() == batch.tokens.tolist()


FINE = [(1, False, 0, 0.0), (2, True, 0, -1.0)]


@pytest.mark.parametrize(
    ("rows", "versions", "message"),
    [
        ([(2, True, 0, -1.0)], (0,), "begins with an action token"),
        ([(1, False, 0, 0.0), (2, True, 0, float("-inf"))], (0,), "no log-probability"),
        ([(1, False, 0, 0.0), (2, True, 0, float("nan"))], (0,), "no log-probability"),
        ([(1, False, 0, 0.0), (2, True, 0, 0.7)], (0,), "no log-probability"),
        (FINE, (0, 0), "2 versions"),
        ([*FINE, (3, True, 1, -1.0), (3, True, 0, -1.0)], (0, 0), r"turns \[0, 1, 0\]"),
        ([(1, False, 0, 0.0), (2, True, 1, -1.0)], (0,), r"turns \[1\]"),
    ],
)
def test_contents_that_cannot_be_learned_from(rows, versions, message):
    with pytest.raises(ValueError, match=message) as error:
        pack([EpisodeTokens((sequence(FINE),), (0,), True), EpisodeTokens((sequence(rows),), versions, True)])
    assert "episode 1" in str(error.value)


def test_shapes_that_differ_are_told():
    fine = sequence(FINE)
    with pytest.raises(ValueError, match=r"turn has the shape \(1,\), not \(2,\)"):
        pack([EpisodeTokens((dataclasses.replace(fine, turn=fine.turn[:1]),), (0,), True)])
    with pytest.raises(ValueError, match="no episode"):
        pack([])
    with pytest.raises(ValueError, match="episode 0 has no sequence"):
        pack([EpisodeTokens((), (), True)])
    batch = pack([EpisodeTokens((fine,), (0,), True)])
    with pytest.raises(ValueError, match=r"action .* and tokens .* differ"):
        dataclasses.replace(batch, action=batch.action[:1])
    with pytest.raises(ValueError, match="1 sequences has 2 offsets, not 1"):
        dataclasses.replace(batch, offsets=batch.offsets[:1])


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_filler_makes_one_of_few_sizes_of_sequences_that_are_no_longer(lengths):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tokens = torch.arange(1, int(offsets[-1]) + 1)
    more, ends = filled(tokens, offsets)
    assert len(more) == int(ends[-1]) == few_sizes(len(tokens))
    assert torch.equal(more[: len(tokens)], tokens) and not more[len(tokens) :].any()
    assert torch.equal(ends[: len(offsets)], offsets)
    assert int(ends.diff().max()) == max(lengths) and int(ends.diff().min()) > 0
