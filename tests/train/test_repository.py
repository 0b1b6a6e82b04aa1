"""Which code a run was made with, found without running any."""

import json
import os
import shutil
import subprocess

import pytest

from milkweed.cli import main
from milkweed.train.environment import describe_environment
from milkweed.train.repository import describe_repository

SMALL = [
    *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4"),
    *("--data.batch_size", "32", "--data.limit", "96", "--trainer.max_epochs", "1"),
]


def git(folder, *arguments):
    settings = [
        "-c",
        "user.name=x",
        "-c",
        "user.email=x@x",
        "-c",
        "init.defaultBranch=main",
        "-c",
        "commit.gpgsign=false",
    ]
    done = subprocess.run(["git", *settings, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "mine"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a.txt").write_text("one\n")
    git(folder, "add", "a.txt")
    git(folder, "commit", "-qm", "x")
    return folder


def test_commit_and_changes(repository):
    commit = git(repository, "rev-parse", "HEAD")
    clean = {"commit": commit, "dirty": False}
    (repository / "deep").mkdir()
    assert describe_repository(repository) == describe_repository(repository / "deep") == clean
    (repository / "untracked").write_text("x")
    os.utime(repository / "a.txt", (1, 1))
    assert describe_repository(repository) == clean
    (repository / "a.txt").write_text("two\n")
    assert describe_repository(repository) == {"commit": commit, "dirty": True}
    git(repository, "add", "a.txt")  # staged counts as well
    assert describe_repository(repository) == {"commit": commit, "dirty": True}


def test_ways_to_store_a_commit(repository, tmp_path):
    commit = git(repository, "rev-parse", "HEAD")
    git(repository, "pack-refs", "--all")
    assert describe_repository(repository)["commit"] == commit
    git(repository, "checkout", "-q", "--detach")
    assert describe_repository(repository) == {"commit": commit, "dirty": False}
    git(repository, "worktree", "add", "-q", "-b", "other", str(tmp_path / "tree"))
    assert describe_repository(tmp_path / "tree") == {"commit": commit, "dirty": False}


def test_nothing_that_a_repository_names_is_run(repository, tmp_path):
    marker, script = tmp_path / "ran", tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {marker}\ncat\n")
    script.chmod(0o755)
    (repository / ".gitattributes").write_text("*.txt filter=evil diff=evil\n")
    git(repository, "add", ".gitattributes")
    git(repository, "commit", "-qm", "y")
    (repository / ".git" / "info").mkdir(exist_ok=True)
    (repository / ".git" / "info" / "attributes").write_text("*.txt filter=evil\n")
    hooks = repository / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        shutil.copy(script, hooks / name)
    for name, value in (
        ("core.fsmonitor", script),
        ("filter.evil.clean", script),
        ("filter.evil.process", script),
        ("diff.evil.textconv", script),
        ("core.hooksPath", hooks),
        ("core.pager", script),
        ("core.sshCommand", script),
        ("alias.status", f"!{script}"),
    ):
        git(repository, "config", name, str(value))
    (repository / "a.txt").write_text("two\n")
    marker.unlink(missing_ok=True)
    subprocess.run(["git", "status"], cwd=repository, capture_output=True, check=False)
    assert marker.exists()  # the trap works
    marker.unlink()
    assert describe_repository(repository)["dirty"]
    assert describe_repository(repository, "a.txt")["dirty"]
    assert not marker.exists()


@pytest.mark.parametrize(
    "head",
    [
        "",
        "ref: refs/heads/none",
        "ref: ../../secret",
        "ref: refs/../../../secret",
        "xyz",
        "ref: refs/heads/\0",
        "0" * 39,
    ],
)
def test_what_is_no_repository_is_none(tmp_path, head):
    (tmp_path / "secret").write_text("0" * 40 + "\n")
    folder = tmp_path / "a" / "b"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text(head)
    assert describe_repository(folder) is None


def test_without_git_the_commit_is_known_still(repository, monkeypatch):
    commit = git(repository, "rev-parse", "HEAD")
    monkeypatch.setenv("PATH", "")
    assert describe_repository(repository) == {"commit": commit, "dirty": None}
    assert describe_repository(repository, "a.txt") is None
    monkeypatch.undo()
    (repository / ".git" / "index").write_bytes(b"rubbish")
    assert describe_repository(repository) == {"commit": commit, "dirty": None}


def test_a_package_in_a_foreign_repository_is_not_of_it(repository):
    (repository / "installed.py").write_text("")
    assert describe_repository(repository, "installed.py") is None
    assert describe_repository(repository, "a.txt")["dirty"] is False


def test_a_run_records_the_users_repository_apart(repository, tmp_path, monkeypatch):
    commit = git(repository, "rev-parse", "HEAD")
    monkeypatch.chdir(repository)
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # e.g. within a hook
    assert main(["train", "digits", "--out", str(tmp_path / "out"), *SMALL]) == 0
    found = json.loads((tmp_path / "out" / "digits" / "environment.json").read_text())["repositories"]
    assert found["working_folder"] == {"commit": commit, "dirty": False}
    assert found["milkweed"] != found["working_folder"]
    assert found["recipe"] is None
    recipe = tmp_path / "elsewhere.yaml"
    assert describe_environment([], repository / "a.yaml")["repositories"]["recipe"]["commit"] == commit
    assert describe_environment([], recipe)["repositories"]["recipe"] is None
