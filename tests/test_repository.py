"""What is in the repository beside code: documents, decisions, the glossary, hooks, CI."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DECISIONS = ROOT / "docs" / "decisions"

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")


def files(*patterns: str) -> list[Path]:
    """Tracked files, and those that are about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for line in listed.splitlines() if (path := ROOT / line).exists()]


def anchors(document: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_relative_links_resolve() -> None:
    broken = []
    for document in files("*.md"):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(), flags=re.DOTALL)
        for link in re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', text):
            target, _, anchor = "".join(link).partition("#")
            if re.match(r"[a-z]+:", target):  # https:, mailto:
                continue
            path = document.parent / target if target else document
            if not path.exists() or (anchor and anchor not in anchors(path)):
                broken.append(f"{document.relative_to(ROOT)}: {''.join(link)}")
    assert not broken


def test_documents_name_no_path_of_one_machine() -> None:
    for document in files("*.md", ".github", ".pre-commit-config.yaml"):
        found = re.findall(r"(?<![\w.~}-])/(?:work|root|tmp|home)\b\S*", document.read_text())
        assert not found, document.relative_to(ROOT)


def test_every_decision_is_in_the_index() -> None:
    pages = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")
    listed = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \|", (DECISIONS / "README.md").read_text(), re.MULTILINE)
    assert listed == [(path.name[:4], path.name) for path in pages]
    assert len({number for number, _ in listed}) == len(listed), "two decisions have one number"


def test_the_glossary_is_sorted() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text()
    _, *sections = re.split(r"^## .+$", text, flags=re.MULTILINE)
    for section in sections:
        terms = re.findall(r"^- \*\*(.+?)\*\*: ", section, re.MULTILINE)
        assert len(terms) == len(re.findall("^- ", section, re.MULTILINE)) > 1
        assert terms == sorted(terms, key=str.casefold)


def test_places_that_documents_name_exist() -> None:
    places = r"`((?:aigc_ext|benchmarks|csrc|docs|examples|tests)/[\w./-]+)`"
    missing = [
        f"{document.relative_to(ROOT)}: {place}"
        for document in files("*.md")
        if document.name != "CHANGELOG.md"  # it tells of the past
        for place in re.findall(places, document.read_text())
        if not (ROOT / place).exists()
    ]
    assert not missing


def test_kernels_never_include_torch() -> None:
    csrc = ROOT / "csrc"

    def included(path: Path, seen: set[Path]) -> set[Path]:
        for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
            if (header := csrc / name).exists() and header not in seen:
                seen |= included(header, seen | {header})
        return seen

    kernels = [*csrc.glob("*/*_cpu.cpp"), *csrc.glob("*/*.cu"), *csrc.glob("core/*")]
    assert len(kernels) > 30
    for kernel in kernels:
        for path in included(kernel, {kernel}):
            assert not re.search(r"#include .(torch|ATen|c10)", path.read_text()), f"{kernel}: {path}"


def test_the_hooks_are_make_lint() -> None:
    yaml = pytest.importorskip("yaml")
    recipe = re.search(r"^lint:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    commands = recipe[1].replace("\\\n", " ").replace("$(BIN)/", ".venv/bin/")
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = repository["hooks"]
    assert repository["repo"] == "local"
    assert all(hook["language"] == "system" for hook in hooks)

    def as_in_make(hook: dict[str, str]) -> str:
        if hook.get("pass_filenames", True):  # of the endings in `files`
            endings = re.fullmatch(r"\\\.\(([\w|]+)\)\$", hook["files"])
            assert endings, hook["files"]
            patterns = " ".join(f"'*.{ending}'" for ending in endings[1].split("|"))
            return f"git ls-files {patterns} | xargs {hook['entry']}"
        return hook["entry"]

    assert [as_in_make(hook) for hook in hooks] == [line.strip() for line in commands.splitlines()]


def test_every_yaml_file_is_sound() -> None:
    yaml = pytest.importorskip("yaml")
    forms = ROOT / ".github" / "ISSUE_TEMPLATE"
    for path in files("*.yml", "*.yaml"):
        content = yaml.safe_load(path.read_text())
        assert isinstance(content, dict), path
        if path.parent == forms and path.name != "config.yml":
            asked = {field["id"]: field["attributes"]["label"] for field in content["body"]}
            assert len(asked) == len(content["body"])
            assert content["name"]
            assert content["description"]
            assert "aigc_ext.info" in asked.get("info", "") or path.name == "feature.yml"


def test_ci_runs_what_the_documents_promise() -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in jobs.items():
        assert "timeout-minutes" in job, name
        assert "permissions" not in job, name
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v0")), step
    matrix = jobs["ops"]["strategy"]["matrix"]
    oldest = re.search(r'requires-python = ">=(.+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest
    assert matrix["python"][0] == oldest[1]
    compatibility = (ROOT / "docs" / "compatibility.md").read_text()
    assert all(re.search(rf"\b{re.escape(torch)}\.\d", compatibility) for torch in matrix["torch"])
    assert {"run": ".ci/run"} in jobs["reference"]["steps"]
