"""The guide's new method is one file and nothing else; importing one loads no other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hashlens import baselines
from hashlens.baselines import create_method, method_names
from hashlens.paper.runs import read_piece

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "add-a-method.md"


def test_a_method_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, use = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    exec(file + use, {"__name__": "guide"})
    (tmp_path / "pca_hash.py").write_text(file, encoding="utf-8")
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    assert "PCA-HASH" in method_names()
    features = np.random.default_rng(0).standard_normal((500, 64))
    assert create_method("PCA-HASH", 32).fit(features).encode(features).shape == (500, 4)
    methods = read_piece("cifar10").methods
    assert methods.index("KSH") < methods.index("PCA-HASH") < methods.index("CNNH")


def test_a_method_loads_no_other() -> None:
    code = (
        "import sys; from hashlens.baselines import create_method, method_names; "
        "before = set(sys.modules); create_method('SH', 32); "
        "print(*sorted(name for name in sys.modules if name.startswith('hashlens.baselines.'))); "
        "assert 'hashlens.baselines.sh' not in before"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    found = [name.removeprefix("hashlens.baselines.") for name in answer.stdout.split()]
    assert found == ["base", "sh"]
