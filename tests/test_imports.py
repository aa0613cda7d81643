"""The picture of the house holds: imports run one way, and Ray lives in two places."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("envs", "inference", "agents", "reward_server", "learner", "orchestration")
ALLOWED = {
    "envs": set(),
    "inference": set(),
    "agents": {"envs", "inference"},
    "reward_server": {"envs", "inference"},
    "learner": {"agents", "envs", "inference", "reward_server"},
    "orchestration": {"agents", "envs", "inference", "reward_server", "learner"},
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        others = imports_of(path) & set(PACKAGES) - {package}
        assert others <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {others - ALLOWED[package]}"


def test_ray_lives_in_orchestration_and_the_judges_deployment():
    users = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "ray" in imports_of(path)
    }
    outside = {path for path in users if not path.startswith("orchestration/")}
    assert outside == {"reward_server/judge/deployment.py"}


def test_the_coordinator_loads_no_torch() -> None:
    """It would delay the first step: workers load theirs on the same cores at the same time."""
    code = "import sys, orchestration.ray_runtime; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
