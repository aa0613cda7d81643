"""What annotation costs a training: steps/s with a judge that is elsewhere over steps/s without any, alternating.

The judge is a server in a process of its own that answers after a fixed latency and computes next to nothing, so what
is left is the price of captions, requests, labels, distillation, and intrinsic rewards.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.memory import Sampler
from benchmarks.runs import Measured, train

RUN = ["nethack_score", "agent.network=fast", "learner.batch_size=2048"]
OFF = ["reward.model=none"]
HELPFUL = (b"see here", b"You kill", b"gold piece")
"""A prompt whose last 200 bytes hold one of these is answered with 1: a rule that a reward model can learn."""


@dataclass(frozen=True)
class RemoteJudge:
    """An OpenAI-compatible server in a process of its own."""

    url: str
    process: psutil.Process

    @property
    def cpu_s(self) -> float:
        """Processor time that it took so far: of the machine, but not of annotation."""
        times = self.process.cpu_times()
        return times.user + times.system


@contextlib.contextmanager
def remote_judge(latency_s: float) -> Generator[RemoteJudge]:
    """Runs a judge that answers every request `latency_s` seconds after it came."""
    command = [sys.executable, "-m", "benchmarks.judge_cost", str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield RemoteJudge(server.stdout.readline().strip(), psutil.Process(server.pid))
        finally:
            server.terminate()


def main(folder: Path, *arguments: str) -> None:
    """`--seconds S` of each run (60), `--rounds N` (4) of one run with and one without annotation, `--latency S`
    (0.2), further `key=value` of the runs. Prints a table, writes `judge_cost.json`."""
    parser = argparse.ArgumentParser(prog="judge_cost", description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--latency", type=float, default=0.2)
    options, keys = parser.parse_known_args(arguments)
    cases = [*RUN, *keys, f"train.max_wall_s={options.seconds}"]
    rows: list[dict[str, dict[str, float | str | None]]] = []
    with remote_judge(options.latency) as judge:
        on = ["judge.engine=openai", f"judge.url={judge.url}", "judge.model=elsewhere"]
        for number in range(options.rounds):
            row: dict[str, dict[str, float | str | None]] = {}
            # Whatever drifts (heat, neighbours) meets both: every other round begins with the other one.
            for name, keys in [("on", on), ("off", OFF)][:: 1 if number % 2 == 0 else -1]:
                row[name] = _measured(folder, f"judge-{name}-{number}", [*cases, *keys], judge)
                print(name, json.dumps(row[name]), flush=True)
            rows.append(row)
    report = {"latency_s": options.latency, "rounds": rows, **_summary(rows)}
    (folder / "judge_cost.json").write_text(json.dumps(report, indent=2))
    print_figures(report)


def _measured(folder: Path, name: str, arguments: Sequence[str], judge: RemoteJudge) -> dict[str, float | str | None]:
    judge_began = judge.cpu_s
    with Sampler(1.0, without=[judge.process.pid]) as sampler:
        run = train(folder, name, *arguments)
    last = sampler.samples[-1]
    return {
        "command": run.command,
        "steps_per_second": _steps_per_second(run),
        "rewards_share": run.share("learner/rewards"),
        "labels": run.summary["captions_labelled"],
        "captions": run.summary["captions_unique"],
        "reward_server_cpu_s": last.cpu_s.get("reward server", 0.0),
        "judge_cpu_s": judge.cpu_s - judge_began,
        "seconds": run.lines[-1]["time"]["wall_s"],
    }


def _steps_per_second(run: Measured, skip: float = 0.2) -> float:
    """Steps over time between two lines of the metrics, the first share `skip` of the run left out."""
    first, last = run.lines[int(len(run.lines) * skip)], run.lines[-1]
    return (last["env_steps"] - first["env_steps"]) / (last["time"]["wall_s"] - first["time"]["wall_s"])


def _summary(rows: Sequence[dict[str, dict[str, float | str | None]]]) -> dict[str, object]:
    def values(name: str, figure: str) -> list[float]:
        return [float(row[name][figure] or 0.0) for row in rows]

    on, off = values("on", "steps_per_second"), values("off", "steps_per_second")
    shares = [cpu / s for cpu, s in zip(values("on", "reward_server_cpu_s"), values("on", "seconds"), strict=True)]
    judges = [cpu / s for cpu, s in zip(values("on", "judge_cpu_s"), values("on", "seconds"), strict=True)]
    return {
        "on_over_off": spread([a / b for a, b in zip(on, off, strict=True)]),
        "steps_per_second_on": spread(on),
        "steps_per_second_off": spread(off),
        "learner_time_for_rewards": spread(values("on", "rewards_share")),
        "cores_of_the_reward_server": spread(shares),
        "cores_of_the_judge": spread(judges),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of a figure over the rounds."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def print_figures(report: Mapping[str, object]) -> None:
    """A table of the figures of a report: those with a spread, then plain numbers."""
    print("\n| | median | least | most |\n|---|---|---|---|")
    for name, figure in report.items():
        if isinstance(figure, int | float):
            figure = {"median": figure}
        if isinstance(figure, dict) and "median" in figure:
            columns = (figure.get(column) for column in ("median", "least", "most"))
            print(f"| {name.replace('_', ' ')} | {' | '.join('' if c is None else f'{c:,.4g}' for c in columns)} |")


async def _serve(latency_s: float) -> None:
    """Speaks just enough HTTP: one request after the other on each connection, bodies with a length."""

    def body(content: str) -> bytes:
        message = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        text = json.dumps({"object": "chat.completion", "model": "elsewhere", "choices": [message]})
        return (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
        )

    answers = body("0"), body("1")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                prompt = (await reader.readexactly(length)).partition(b'"temperature"')[0][-200:]
                await asyncio.sleep(latency_s)
                writer.write(answers[any(word in prompt for word in HELPFUL)])
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))
