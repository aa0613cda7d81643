"""Training throughput beside Sample Factory's: the same network, games, batch and rollout length, alternating.

First a short search for Sample Factory's best setting, then both systems in turn; Sample Factory once with our encoder
module and once with the network as it is defined, which is what it has without our code. Steps are those trained on, counted in
the steady state: from the first update on, after a warm-up. Neither has a judge or intrinsic rewards.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks import runs
from benchmarks.sample_factory import environment
from benchmarks.sample_factory import runs as sample_factory
from benchmarks.sample_factory.runs import Progress, Setting
from learner.precision import resolve_precision
from orchestration.configuration.loader import load_config

NETWORKS = ("oni", "fast")
KEYS = ("learner.batch_size=2048", "reward.model=none", "log.interval_s=0.5")
"""Of every run, beside the preset `nethack_score`."""
LAYOUT: dict[str, tuple[str, ...]] = {
    "oni": (),
    # Acting takes more of a step's time than learning: a second actor has the rest of the learner's core.
    "fast": ("actors.count=2", "actors.envs=32", "actors.cpus=0.5"),
}
"""How ours spreads the 64 games over two cores."""
CANDIDATES = (
    Setting("asynchronous", workers=2, splits=2),
    Setting("asynchronous", workers=2, splits=1),
    Setting("asynchronous", workers=1, splits=2),
    Setting("asynchronous", workers=4, splits=2),
    Setting("asynchronous", workers=2, splits=2, affinity=False),
    Setting("asynchronous", workers=2, splits=2, threads=2),
    Setting("asynchronous", workers=1, splits=2, batched=True),
    Setting("asynchronous", workers=2, splits=1, batched=True),
    Setting("synchronous", workers=2, splits=2, threads=2),
    Setting("serial", threads=1),
    Setting("serial", threads=2),
    Setting("serial", threads=2, batched=True),
)
"""Settings of Sample Factory to choose from, all with the same 64 games."""
PLAIN_CANDIDATES = 4
"""So many of the best settings are tried with the plain network too."""
WARM_UP_S = 8.0
START_S = 20.0
"""Our run is bounded from its start, theirs from its first update: so much is allowed for the difference."""


@dataclass(frozen=True)
class Rates:
    """Steps/s of the repeats of one system."""

    command: str
    each: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.each)

    @property
    def spread(self) -> float:
        """Largest less smallest, as a share of the median."""
        return (max(self.each) - min(self.each)) / self.median


@dataclass(frozen=True)
class Comparison:
    """Both systems with one network."""

    network: str
    searched: Mapping[str, float]
    """Steps/s of each candidate setting in the search."""
    ours: Mapping[str, Rates]
    theirs: Rates
    """With our encoder module, which computes each distinct crop and window once."""
    plain: Rates
    """With the same network, each step encoded by itself: what its users would have."""
    where: Mapping[str, Mapping[str, float]]
    """Of Sample Factory's last run: shares of its wall clock, by component and activity (`shares`)."""

    def ratio(self, variant: str, *, plain: bool = False) -> float:
        """Median of the ratios of neighbouring runs: what slows the machine down for minutes falls on both."""
        theirs = self.plain if plain else self.theirs
        return statistics.median(a / b for a, b in zip(self.ours[variant].each, theirs.each, strict=True))


def main(folder: Path, *options: str) -> None:
    """Prints a table for each network and writes `versus.json`. `options` as on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks versus", description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="both without it")
    parser.add_argument("--seconds", type=float, default=45.0, help="measured of each run (default 45)")
    parser.add_argument("--search-seconds", type=float, default=15.0, help="measured of each candidate (default 15)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each system (default 3)")
    parser.add_argument("--candidates", type=int, default=len(CANDIDATES), help="so many settings are tried, in order")
    given = parser.parse_args(options)
    if given.repeats < 1:
        parser.error(f"--repeats must be at least 1, not {given.repeats}")
    environment.python()  # made now, so that no run waits for it
    found: dict[str, object] = {}
    for network in given.network or NETWORKS:
        comparison = compare(
            folder / network,
            network,
            given.seconds,
            given.repeats,
            given.search_seconds,
            CANDIDATES[: given.candidates],
        )
        print(table(comparison), flush=True)
        found[network] = as_json(comparison)
        (folder / "versus.json").write_text(json.dumps(found, indent=2))


def compare(
    folder: Path,
    network: str,
    seconds: float,
    repeats: int,
    search_seconds: float,
    candidates: Sequence[Setting] = CANDIDATES,
    ours: Mapping[str, tuple[str, ...]] | None = None,
) -> Comparison:
    """Searches among `candidates`, then measures each variant of ours and Sample Factory's best setting in turn."""
    ours = variants() if ours is None else ours
    searched = {s.name: measure_theirs(folder, network, s, search_seconds).each[0] for s in candidates}
    ordered = sorted(candidates, key=lambda setting: -searched[setting.name])
    best, promising = ordered[0], [replace(setting, plain=True) for setting in ordered[:PLAIN_CANDIDATES]]
    searched |= {s.name: measure_theirs(folder, network, s, search_seconds).each[0] for s in promising}
    plain = max(promising, key=lambda setting: searched[setting.name])
    print(f"{network}: Sample Factory is best with {best.name}; {plain.name}", flush=True)
    rates: dict[str, list[Rates]] = {name: [] for name in ours}
    theirs: dict[Setting, list[Rates]] = {best: [], plain: []}
    for number in range(repeats):
        for index, (name, keys) in enumerate(ours.items()):
            rates[name].append(measure_ours(folder, f"yendor-{index}-{number}", network, keys, seconds))
        for setting, each in theirs.items():
            each.append(measure_theirs(folder, network, setting, seconds))
    return Comparison(
        network=network,
        searched=searched,
        ours={name: _together(each) for name, each in rates.items()},
        theirs=_together(theirs[best]),
        plain=_together(theirs[plain]),
        where=shares(json.loads((_folder_of(folder, best) / "profile.json").read_text())),
    )


def variants() -> dict[str, tuple[str, ...]]:
    """Keys by variant of ours: the default precision, and fp32 where that is another."""
    if resolve_precision("auto", torch.device("cpu")) == torch.float32:
        return {"yendor (fp32: this CPU has no bf16)": ()}
    return {"yendor": (), "yendor, fp32": ("learner.precision=fp32",)}


def measure_ours(folder: Path, name: str, network: str, keys: Sequence[str], seconds: float) -> Rates:
    """Steps/s of one run of ours."""
    limit = START_S + WARM_UP_S + seconds
    given = (f"agent.network={network}", *KEYS, *LAYOUT[network], *keys)
    run = runs.train(folder, name, "nethack_score", *given, f"train.max_wall_s={limit}")
    progress = [Progress(line["time"]["wall_s"], line["env_steps"]) for line in run.lines]
    found = rate(progress, WARM_UP_S, seconds)
    print(f"{network}: {name}: {found:,.0f} steps/s", flush=True)
    return Rates(run.command, (found,))


def measure_theirs(folder: Path, network: str, setting: Setting, seconds: float) -> Rates:
    """Steps/s of one run of Sample Factory."""
    config = load_config("nethack_score", (f"agent.network={network}", *KEYS))
    run = sample_factory.train(_folder_of(folder, setting), config, setting, WARM_UP_S + seconds)
    found = rate(run.progress, WARM_UP_S, seconds)
    print(f"{network}: Sample Factory, {setting.name}: {found:,.0f} steps/s", flush=True)
    return Rates(" ".join(run.flags), (found,))


def rate(progress: Sequence[Progress], warm_up_s: float, seconds: float) -> float:
    """Steps/s over `seconds` that begin `warm_up_s` after the first step that is counted.

    Steps come in batches, so only the times at which the count moved are looked at. Raises RuntimeError where these
    cover less than half of `seconds`.
    """
    moved = [b for a, b in zip([Progress(0.0, 0), *progress], progress, strict=False) if b.env_steps > a.env_steps]
    begin = moved[0].t + warm_up_s if moved else 0.0
    window = [p for p in moved if begin <= p.t <= begin + seconds]
    covered = window[-1].t - window[0].t if window else 0.0
    if covered < seconds / 2:
        raise RuntimeError(
            f"only {covered:.1f} s of the {seconds:.1f} s to measure saw the count of steps move: the start took too "
            "long or a batch takes long; measure for longer"
        )
    return (window[-1].env_steps - window[0].env_steps) / covered


def shares(profile: Mapping[str, Mapping[str, float]], least: float = 0.02) -> dict[str, dict[str, float]]:
    """Seconds of `profile` as shares of the whole run, start-up included; activities may lie within one another.

    Shares below `least` are left out.
    """
    whole = profile["runner"]["main_loop"]
    parts = {
        component: {activity: s / whole for activity, s in seconds.items() if s / whole >= least}
        for component, seconds in profile.items()
        if component != "runner"
    }
    return {component: activities for component, activities in parts.items() if activities}


def table(found: Comparison) -> str:
    """The comparison as a Markdown table, then the search, then where Sample Factory's time goes."""
    rows = [
        f"| nethack/Score, {found.network} | steps/s, each | median | spread | over Sample Factory | over it, plain |"
    ]
    rows.append("|---|---|---|---|---|---|")
    for name, rates in found.ours.items():
        rows.append(_row(name, rates, f"{found.ratio(name):.2f} | {found.ratio(name, plain=True):.2f}"))
    rows.append(_row("Sample Factory, our encoder module", found.theirs, "1 |"))
    rows.append(_row("Sample Factory, plain network", found.plain, "| 1"))
    rows += [f"  {name}: {each:,.0f} steps/s" for name, each in sorted(found.searched.items(), key=lambda x: -x[1])]
    for component, activities in found.where.items():
        rows.append(f"  {component}: " + ", ".join(f"{name} {share:.0%}" for name, share in activities.items()))
    return "\n".join(rows)


def as_json(found: Comparison) -> dict[str, object]:
    """All figures, medians and ratios too."""
    systems = {**found.ours, "Sample Factory": found.theirs, "Sample Factory, plain network": found.plain}
    medians = {name: {"median": rates.median, "spread": rates.spread} for name, rates in systems.items()}
    return {**asdict(found), "medians": medians, "ratio": _ratios(found), "ratio_plain": _ratios(found, plain=True)}


def _ratios(found: Comparison, *, plain: bool = False) -> dict[str, float]:
    return {name: found.ratio(name, plain=plain) for name in found.ours}


def _row(name: str, rates: Rates, ratio: str) -> str:
    each = ", ".join(f"{x:,.0f}" for x in rates.each)
    return f"| {name} | {each} | {rates.median:,.0f} | {rates.spread:.0%} | {ratio} |"


def _folder_of(folder: Path, setting: Setting) -> Path:
    return folder / setting.name.replace(", ", "-").replace(" ", "-")


def _together(each: Sequence[Rates]) -> Rates:
    return Rates(each[-1].command, tuple(x for rates in each for x in rates.each))
