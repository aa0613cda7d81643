"""Settings of all tests: the machine may be small and shared, so numeric libraries get one thread each."""

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402  the environment comes first


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


_LONGEST_FIRST = (
    "test_ray_nodes", "test_judge_deployment", "test_ray_learners", "test_trace_replay_runs", "test_end_to_end",
    "test_language_ray", "test_benchmarks", "test_watchdog", "test_jobs", "test_ray_learner", "test_ray", "test_offsite_runs",
    "test_language_vllm", "test_elastic", "test_judge_vllm", "test_serial", "test_envs_alfworld_stock", "test_credit_learner",
    "test_trace_replay",
)  # fmt: skip
"""Slow and long files that the others fill the gaps behind: one that takes long and begins last keeps one process busy alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In which order they begin: the fast ones first."""
    place = {file: number for number, file in enumerate(_LONGEST_FIRST)}

    def order(item: pytest.Item) -> int:
        return (
            place.get(item.path.stem, len(place))
            if any(item.iter_markers("slow")) or any(item.iter_markers("long"))
            else -1
        )

    items.sort(key=order)
