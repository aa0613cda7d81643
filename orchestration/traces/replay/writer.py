"""Writes the trace of an episode that is played here, step by step: a fork, or an episode of a text world."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from envs.captions import EMPTY_CAPTION_ID, caption_id
from orchestration.traces.clocks import WallClock
from orchestration.traces.files import TraceFile
from orchestration.traces.hashes import key_hashes
from orchestration.traces.replay.policies import Choice
from orchestration.traces.replay.worlds import Seen
from orchestration.traces.schema import Caption, End, EnvReset, EnvStep, Header, Reward, Stop, WeightsUpdate, clean
from orchestration.traces.spoken import Spoken


class EpisodeWriter:
    """Records one episode in `folder/EPISODE.jsonl.zst`, as `TraceRecorder` does, from what is seen alone."""

    def __init__(
        self,
        folder: Path,
        header: Header,
        opening: Seen,
        *,
        agent: str,
        wall: WallClock | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wall`: the clock that `header` was dated by."""
        self._header = header
        self._wall = wall or WallClock()
        self._agent = agent
        self._clock = clock
        self._began = clock()
        self._seq = 0
        self._counts: dict[int, int] = {}
        self._known: set[int] = set()
        self._texts: set[str] = set()
        self._costs = {"tokens": 0, "llm_calls": 0}
        self._stopped = False
        self._version = header.policy_version
        self.steps = 0
        self.episode_return = 0.0
        self._file = TraceFile(folder, header.episode_id, clock=clock)
        self._file.write(header)
        opened = self._name(opening.caption)
        reset = EnvReset(
            **self._event(()),
            observation_hash=opening.observation_hash,
            key_hashes=key_hashes(opening.observation) if header.observation_keys else "",
            screen=clean(opening.screen),
            colors=opening.colors,
            caption_id=opened,
        )
        self._last = reset.id
        self._seen = opening
        self._file.write(reset)

    def step(self, choice: Choice, seen: Seen, policy_version: int) -> None:
        """One action and what came of it."""
        if policy_version != self._version:
            update = WeightsUpdate(**self._event((self._last,)), from_version=self._version, to_version=policy_version)
            self._version, self._last = policy_version, update.id
            self._file.write(update)
        parents = (self._last,) if choice.spoken is None else (self._last, self._call(choice.spoken))
        name = self._name(seen.caption)
        number = int(name)
        self._counts[number] = self._counts.get(number, 0) + (number != EMPTY_CAPTION_ID)
        step = EnvStep(
            **self._event(parents),
            step=self.steps,
            action=choice.action,
            action_name=clean(choice.name),
            log_prob=choice.log_prob,
            value=choice.value,
            reward=seen.reward,
            caption_id=name,
            caption_count=self._counts[number],
            grounded=seen.grounded,
            policy_version=policy_version,
            observation_hash=seen.observation_hash,
            key_hashes=key_hashes(seen.observation) if self._header.observation_keys else "",
            screen=clean(seen.screen),
            colors=seen.colors,
        )
        self._last, self._seen = step.id, seen
        self.steps += 1
        self.episode_return += seen.reward
        self._file.write(step)
        if seen.reward != 0:
            self._file.write(
                Reward(
                    **self._event((step.id,)),
                    family="outcome",
                    value=seen.reward,
                    source="environment",
                    version=None,
                    targets=(step.id,),
                )
            )

    def _call(self, spoken: Spoken) -> str:
        """The id of the event of a model's call. Its model's name says which weights it has: those of a folder."""
        text = spoken.text
        if text.ref not in self._texts:
            self._texts.add(text.ref)
            self._file.write(text)
        model = self._header.policy or ""
        call = spoken.call(self._event((self._last,)), model=model, version=None, step=self.steps)
        self._costs["tokens"] += call.prompt_tokens + call.output_tokens
        self._costs["llm_calls"] += 1
        self._file.write(call)
        return call.id

    def stop(self, reason: str) -> None:
        """Whoever plays stops, where the world would go on."""
        self._stopped = True
        self._file.write(Stop(**self._event((self._last,)), target=self._agent, reason=reason))

    def finish(self) -> Path:
        """Gives the file its final name. Raises ValueError where the episode has not ended."""
        seen = self._seen
        if not (seen.ended or self._stopped):
            raise ValueError(f"{self._header.episode_id} has not ended after {self.steps} steps")
        elapsed = self._elapsed()
        self._file.write(
            End(
                t=elapsed,
                events=self._seq,
                length=self.steps,
                episode_return=self.episode_return,
                terminated=seen.terminated,
                truncated=self._stopped or (seen.truncated and not seen.terminated),
                success=seen.success,
                metrics=dict(seen.metrics),
                error=None if seen.error is None else clean(seen.error),
                kept="asked",
                costs={"wall_clock_s": elapsed, **{name: cost for name, cost in self._costs.items() if cost}},
            )
        )
        self._file.flush()
        self._file.complete()
        return self._file.final

    def abandon(self) -> None:
        """Leaves what was recorded as `.part`."""
        self._file.abandon()

    def _name(self, caption: str) -> str:
        """The id of a caption, whose text is written when it first comes."""
        number = caption_id(caption)
        if number != EMPTY_CAPTION_ID and number not in self._known:
            self._known.add(number)
            self._file.write(Caption(caption_id=str(number), text=clean(caption)))
        return str(number)

    def _event(self, parents: tuple[str, ...]) -> dict[str, Any]:
        seq = self._seq
        self._seq += 1
        where = {"id": f"e{seq}", "seq": seq, "agent": self._agent, "parents": parents}
        return {**where, "t": self._elapsed(), "skew": self._wall.skew()}

    def _elapsed(self) -> float:
        return round(self._clock() - self._began, 6)
