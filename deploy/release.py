"""Build a release: check the changelog, make every link of the README whole, build, check, tag.

    python deploy/release.py 0.2.0 https://example.org/hashlens

Links of README.md are relative, which is right in a checkout. On a package index they must name
the repository, so the files are built from a copy in which they do. Publish with
``uv publish dist/*`` and ``git push --tags``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>(?![a-z]+:|#)[^)\s]+)\)")


def whole_links(text: str, repository: str, version: str) -> str:
    """Markdown whose links to files name the repository at a version."""

    def whole(link: re.Match[str]) -> str:
        kind = "raw" if link["image"] else "blob"
        target = f"{repository.rstrip('/')}/{kind}/v{version}/{link['path']}"
        return f"{link['image']}[{link['text']}]({target})"

    return LINK.sub(whole, text)


def check(version: str) -> None:
    """Stop where version or changelog is not that of a release, or a change is not committed."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if f'\nversion = "{version}"\n' not in project:
        sys.exit(f'pyproject.toml: expected version = "{version}"; set it first')
    heading = rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$"
    if not re.search(heading, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE):
        sys.exit(f"CHANGELOG.md: expected a section '## {version} (YYYY-MM-DD)'; date 'Unreleased'")
    if run("git", "status", "--porcelain"):
        sys.exit("there are changes that are not committed; commit them first")


def run(*command: str | Path, cwd: Path = ROOT) -> bytes:
    """Output of a command, which must succeed."""
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE).stdout


def build(version: str, repository: str, out: Path) -> None:
    """Wheel and source distribution of the last commit."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        with tarfile.open(fileobj=BytesIO(run("git", "archive", "HEAD"))) as archive:
            archive.extractall(copy, filter="data")
        readme, project = copy / "README.md", copy / "pyproject.toml"
        text = whole_links(readme.read_text(encoding="utf-8"), repository, version)
        readme.write_text(text, encoding="utf-8")
        urls = f'[project.urls]\nRepository = "{repository}"\n\n[project.scripts]\n'
        text = project.read_text(encoding="utf-8").replace("[project.scripts]\n", urls)
        project.write_text(text, encoding="utf-8")
        run("uv", "build", "--out-dir", out, cwd=copy)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version")
    parser.add_argument("repository", help="https address of the repository")
    given = parser.parse_args()
    check(given.version)
    build(given.version, given.repository, ROOT / "dist")
    run("uvx", "twine", "check", "--strict", *(ROOT / "dist").glob(f"hashlens-{given.version}*"))
    run("git", "tag", "-a", f"v{given.version}", "-m", f"Hashlens {given.version}")
    print(
        f"dist/ holds {given.version}, tagged; publish with: uv publish dist/* && git push --tags"
    )
