"""Makes Sample Factory's own virtual environment: it wants a gymnasium that this project cannot have beside it."""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".cache" / "sample-factory"
REQUIREMENTS = (ROOT / "requirements" / "torch.txt", Path(__file__).with_name("requirements.txt"))
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def python() -> Path:
    """The interpreter of the environment, which is made anew where there is none or its requirements have changed.

    Raises RuntimeError with pip's output where a package cannot be installed.
    """
    interpreter = FOLDER / "venv" / "bin" / "python"
    wanted = _fingerprint()
    made_of = FOLDER / "made-of"
    if made_of.exists() and made_of.read_text() == wanted and interpreter.exists():
        return interpreter
    print(f"making the environment of Sample Factory in {FOLDER}", flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(FOLDER / "venv")])
    torch, rest = REQUIREMENTS
    install = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    try:
        _run([*install, "-r", str(torch)])
    except RuntimeError:  # not among the packages of the configured index: the CPU builds have one of their own
        _run([*install, "--index-url", TORCH_INDEX, "-r", str(torch)])
    _run([*install, "-r", str(rest)])
    made_of.write_text(wanted)
    return interpreter


def _fingerprint() -> str:
    """Changes with the interpreter and with any requirement."""
    parts = [sys.version.encode(), *(file.read_bytes() for file in REQUIREMENTS)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
