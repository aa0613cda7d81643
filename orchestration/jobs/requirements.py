"""What a cluster that has only Ray must install for a job."""

from pathlib import Path
from typing import Any

from orchestration.errors import UsageError
from orchestration.jobs.package import PackageError, project_root

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def pip_environment(kind: str, root: Path | None = None) -> dict[str, Any]:
    """Ray's `pip` entry of a runtime environment.

    `cpu`: the exact, whole set of `requirements/` (vLLM for the CPU included); `gpu`: what `pyproject.toml` asks for, with
    vLLM, resolved by pip on the cluster, but for ALFWorld, whose planner is compiled. Ray itself is what the cluster has.
    Raises `UsageError` for another kind.
    """
    root = root or project_root()
    try:
        if kind == "cpu":
            listed = [*_lines(root / "requirements/torch.txt"), *_lines(root / "requirements/cpu.txt")]
            packages = [f"--extra-index-url {CPU_WHEELS}", *(line for line in listed if not _is_ray(line))]
            return {"packages": packages, "pip_install_options": ["--disable-pip-version-check", "--no-deps"]}
        if kind == "gpu":
            import tomllib

            project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
            wanted = [*project["dependencies"], *project["optional-dependencies"]["vllm"]]
            packages = [line.replace("textworld[pddl]", "textworld") for line in wanted if not _is_ray(line)]
            return {"packages": [line for line in packages if not line.startswith("alfworld")]}
    except OSError as error:
        raise PackageError(f"{error.filename}: {error.strerror}; --install needs a checkout of the project") from error
    raise UsageError(f"--install {kind}: expected none, cpu or gpu")


def _lines(path: Path) -> list[str]:
    lines = (line.partition(" #")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _is_ray(line: str) -> bool:
    return line.startswith(("ray=", "ray[", "ray>"))
