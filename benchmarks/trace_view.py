"""How quickly the page of traces opens and scrubs in a real Chromium: an episode of NetHack screens, by default 10,000."""

import argparse
import json
import random
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from agents.networks import NETWORKS
from benchmarks.browser import Browser, find_browser
from envs import make
from orchestration.traces.cells import colors_of, text_of
from orchestration.traces.reader import Trace
from orchestration.traces.schema import SCHEMA, SUFFIX, AnyEvent, End, EnvReset, EnvStep, Header
from orchestration.traces.view import render_traces

SCRUB = """(async () => {
  const field = document.querySelector('#field'), times = [];
  const send = (kind, x) => field.dispatchEvent(new PointerEvent(kind, {bubbles: true, buttons: 1, pointerId: 1,
    clientX: field.getBoundingClientRect().left + x, clientY: field.getBoundingClientRect().top + 5}));
  for (let x = 0; x < 600; x += 5) {
    const began = performance.now();
    send('pointermove', x);
    await new Promise(done => requestAnimationFrame(done));
    times.push(performance.now() - began);
  }
  return times;
})()"""
"""Drags the head over the first 600 pixels of the episode; each move is drawn before the next. Milliseconds of each."""


@dataclass(frozen=True)
class Opened:
    """One page in the browser."""

    steps: int
    page_bytes: int
    open_s: tuple[float, ...]
    """From the address to a page that answers, of each time that it was opened."""
    scrub_ms: tuple[float, ...]
    """Of each move of the head, until it is drawn."""


def main(folder: Path, *options: str) -> None:
    """Prints medians and the worst and writes `trace_view.json`. `options` as on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks trace_view", description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="of the episode (default 10,000)")
    parser.add_argument("--repeats", type=int, default=5, help="times that the page is opened (default 5)")
    given = parser.parse_args(options)
    program = find_browser()
    if program is None:
        print("trace_view: no Chromium here; `apt-get install chromium-headless-shell` brings one. Not measured.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "trace_view.html"
    render_traces([long_trace(given.steps)], page)
    with Browser(program, folder / "profile") as browser:
        times = tuple(browser.open(page) for _ in range(given.repeats))
        opened = Opened(given.steps, page.stat().st_size, times, tuple(browser.run(SCRUB)))
    print(f"a page of {opened.steps:,} NetHack screens ({opened.page_bytes / 1e6:.1f} MB)")
    print(f"opens in {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")
    slowest = max(opened.scrub_ms)
    print(f"a move of the head is drawn in {statistics.median(opened.scrub_ms):.0f} ms (slowest {slowest:.0f})")
    (folder / "trace_view.json").write_text(json.dumps(asdict(opened), indent=2))


def long_trace(steps: int) -> Trace:
    """Games of NetHack played at random, one after the other, as if they were a single episode."""
    env = make("nethack/Score", NETWORKS["fast"].view)
    terminal = env.terminal()
    assert terminal is not None
    names, draw = env.env_spec.action_names, random.Random(0)
    events: list[AnyEvent] = []

    def shown() -> tuple[str, str]:
        planes = terminal.planes()
        return text_of(planes), colors_of(planes)

    env.reset(seed=0)
    screen, colors = shown()
    shared = {"agent": "actor/0", "observation_hash": "0"}
    events.append(EnvReset(id="e0", seq=0, t=0.0, parents=(), screen=screen, colors=colors, **shared))
    for step in range(steps):
        action = draw.randrange(len(names))
        _, reward, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset(seed=step)
        screen, colors = shown()
        events.append(
            EnvStep(
                id=f"e{step + 1}", seq=step + 1, t=0.01 * step, parents=(f"e{step}",), step=step, action=action,
                action_name=names[action], log_prob=-3.0, value=0.0, reward=float(reward), policy_version=0,
                screen=screen, colors=colors, **shared,
            )
        )  # fmt: skip
    env.close()
    header = Header(
        schema=SCHEMA, episode_id="long", run="benchmark", env_id="nethack/Score", env_options={}, action_names=names,
        seeds={"seed": "0"}, policy_version=0, versions={}, code_revision=None, clock="unpinned", recorded_at=0.0,
        count_exponent=None,
    )  # fmt: skip
    total = sum(event.reward for event in events if isinstance(event, EnvStep))
    end = End(
        t=0.01 * steps, events=len(events), length=steps, episode_return=total, terminated=True, truncated=False,
        success=None, metrics={}, error=None,
    )  # fmt: skip
    return Trace(Path(f"long{SUFFIX}"), header, {}, tuple(events), end, None)
