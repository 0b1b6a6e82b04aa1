"""The state of a git repository, read without running anything that the repository could name.

A repository's own configuration may hold commands (fsmonitor, filters, hooks), and `git status` runs them. So the
commit is read from the files themselves, and changes are looked for by git in a scratch folder that borrows the
repository's objects and index, and none of its configuration.
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REFERENCE = re.compile(r"refs(?:/[^/\s~^:?*\[\\]+)+")
_PATIENCE = 10.0  # seconds
# Of a repository's configuration, what comparing files needs and what cannot hold a command.
_PLAIN_SETTINGS = ("filemode", "ignorecase", "symlinks", "autocrlf", "precomposeunicode")
_HARMLESS = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
_MOST_BYTES = 2**24


@dataclass(frozen=True)
class Repository:
    """A checkout."""

    root: Path  # the folder with `.git`
    own: Path  # where HEAD and the index lie
    common: Path  # where objects and references lie; another folder for a further work tree

    @classmethod
    def around(cls, folder: Path) -> "Repository | None":
        """The checkout that a folder is part of, or None."""
        for root in (folder.absolute(), *folder.absolute().parents):
            own = root / ".git"
            if own.is_file():
                named = _text(own).removeprefix("gitdir:").strip()
                own = root / named
            if (own / "HEAD").is_file():
                shared = _text(own / "commondir").strip()
                return cls(root, own, own / shared if shared else own)
        return None

    def commit(self) -> str | None:
        """The name of the commit that is checked out; None before the first, or if it is stored in an unknown way."""
        head = _text(self.own / "HEAD").strip()
        if not head.startswith("ref:"):
            return head if _COMMIT.fullmatch(head) else None
        name = head.removeprefix("ref:").strip()
        if not _REFERENCE.fullmatch(name) or ".." in name:
            return None
        for place in (self.own, self.common):
            found = _text(place / name).strip()
            if _COMMIT.fullmatch(found):
                return found
        for line in _text(self.common / "packed-refs").splitlines():
            found, _, packed = line.partition(" ")
            if packed == name and _COMMIT.fullmatch(found):
                return found
        return None

    def git(self, commit: str, *arguments: str) -> str | None:
        """What a git command prints that reads this checkout without its configuration, hooks and filters, or None."""
        index = self.own / "index"
        if shutil.which("git") is None or not index.is_file():
            return None
        settings = self._settings(commit)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | _HARMLESS
        with tempfile.TemporaryDirectory(prefix="milkweed-git-") as scratch:
            for part in ("refs", "objects"):
                (Path(scratch) / part).mkdir()
            (Path(scratch) / "HEAD").write_text(f"{commit}\n")
            (Path(scratch) / "config").write_text(settings)
            shutil.copyfile(index, Path(scratch) / "index")
            environment |= {"GIT_DIR": scratch, "GIT_WORK_TREE": str(self.root)}
            environment["GIT_OBJECT_DIRECTORY"] = str((self.common / "objects").absolute())
            done = subprocess.run(
                ["git", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", *arguments],
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PATIENCE,
                check=True,
            )
        return done.stdout

    def _settings(self, commit: str) -> str:
        """A configuration of plain switches, as the repository's own has them."""
        lines = re.findall(r"^\s*(\w+)\s*=\s*(true|false|input)\s*$", _text(self.common / "config"), re.M | re.I)
        switches = [f"\t{name} = {value}\n" for name, value in lines if name.lower() in _PLAIN_SETTINGS]
        version, extension = ("1", "[extensions]\n\tobjectformat = sha256\n") if len(commit) == 64 else ("0", "")
        return f"[core]\n\trepositoryformatversion = {version}\n\tbare = false\n{''.join(switches)}{extension}"


def describe_repository(folder: Path, tracked: str | None = None) -> dict[str, Any] | None:
    """The `commit` that a folder is at, and whether tracked files differ from it: `dirty`, None if that is unknown.

    ``tracked`` names a file that must be part of the repository: a package may be installed inside of a foreign one.
    """
    try:
        repository = Repository.around(folder)
        commit = repository.commit() if repository else None
        if repository is None or commit is None:
            return None
        if tracked is not None:
            path = os.path.relpath((folder / tracked).resolve(), repository.root.resolve())
            if not _run(repository, commit, "ls-files", "--", path):
                return None
        status = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all", "--no-renames")
        changes = _run(repository, commit, *status)
    except (OSError, ValueError):
        return None
    return {"commit": commit, "dirty": None if changes is None else bool(changes.strip())}


def _run(repository: Repository, commit: str, *arguments: str) -> str | None:
    try:
        return repository.git(commit, *arguments)
    except (OSError, subprocess.SubprocessError):
        return None


def _text(path: Path) -> str:
    """A small text file; nothing if there is none."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""
