"""The wheel that `python -m build` makes: it is whole, and what is installed from it serves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import Final

import pytest

from mirror.oci.digest import Digest
from tests.support.fake_registry import FakeRegistry
from tests.support.mirror_process import write_config
from tests.support.process import ProgramProcess, run

_ROOT: Final = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git tracks here, so that nothing is left in the tree and nothing untracked is taken."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(_ROOT / name, source)
    shutil.copytree(_ROOT / "mirror", source / "mirror", ignore=shutil.ignore_patterns("__pycache__"))
    # the environment has what the build needs: nothing is fetched
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source])
    (built,) = folder.glob("*.whl")
    return built


def test_everything_is_in_it(wheel: Path) -> None:
    """Each module, what the page shows, the licence."""
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = packed.read(metadata).decode()
    wanted = {str(file.relative_to(_ROOT)) for file in (_ROOT / "mirror").rglob("*") if file.is_file()}
    assert {name for name in wanted if "__pycache__" not in name} <= names
    assert any(name.endswith("LICENSE") for name in names)
    assert "Classifier: License :: OSI Approved :: Apache Software License" in text


def test_what_is_installed_from_it_serves(wheel: Path, tmp_path: Path) -> None:
    """Outside the tree, by its own command: a manifest comes through it."""
    site = tmp_path / "site"
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])",
            wheel,
            site,
        ],
        check=True,
    )
    with FakeRegistry() as registry:
        digest = registry.add_image("team/app", "v1", [b"layer"])
        config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
        started = ProgramProcess(
            [sys.executable, "-c", _SERVE, site, "serve", "--config", config],
            # nothing of the folder that the tests are started in
            env={"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
            name="mirror",
        )
        try:
            address = started.wait_for(_listening, "the listener is ready")
            with urllib.request.urlopen(f"http://{address}/v2/team/app/manifests/v1", timeout=60) as answer:
                assert Digest.of(answer.read()) == digest
        finally:
            started.stop()


#: The command's own entry point, of the package that was installed.
_SERVE: Final = """
import sys
site = sys.argv.pop(1)
import mirror.__main__
assert mirror.__file__.startswith(site), mirror.__file__
mirror.__main__.main()
"""


def _listening(line: str) -> str | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return str(entry["address"]) if isinstance(entry, dict) and entry.get("event") == "listening" else None
