"""Verification steps on the released files: every file that is certified, and every file that is not."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpaudit.certificates.statement import Subject
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, UNFINISHED, Step, judge
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.text import printable
from dpaudit.storage.budget import OutOfTime, section
from dpaudit.storage.readers import inside

# Files of dpaudit's own in a release folder. Those that prove something are bound by the certificate in other steps.
OWN_FILES = {
    "certificate.json",
    "certificate.dsse.json",
    "audit_plan.json",
    "ledger.jsonl",
    "ledger.open",
    "scores.parquet",
    "control_scores.parquet",
    "examination.json",
    "report.html",
    "model_card.md",
}
PRIVACY_JSON = "privacy.json"
"""It lies in the folders of subjects and is compared with the certificate by its own step."""
_AMENDMENT = re.compile(r"amendments/[0-9]{4}(\.dsse)?\.json")
# What the common libraries load as weights or run as code: none of it may lie in a release folder uncertified.
LOADED_SUFFIXES = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".hdf5", ".keras", ".pkl", ".pickle", ".joblib", ".dill"),
    *(".npy", ".npz", ".msgpack", ".gguf", ".ggml", ".onnx", ".onnx_data", ".tflite", ".pb", ".mlmodel", ".params"),
    *(".llamafile", ".model", ".tiktoken", ".spm", ".jinja", ".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".whl"),
    *(".zip", ".tar", ".tgz"),
}
LOADED_NAMES = re.compile(
    r"(config|generation_config|adapter_config|adapter_model|tokenizer|tokenizer_config|special_tokens_map|added_tokens"
    r"|vocab|merges|preprocessor_config|processor_config|chat_template|model_index|modules|quantize_config"
    r"|quantization_config|config_sentence_transformers|sentence_bert_config|params|.*\.index)\.(json|txt|ya?ml|jinja)",
    re.IGNORECASE,
)
_MARKS = ("ledger.jsonl", "audit_plan.json", "scores.parquet")
"""One of these, or a folder of certified files, beside the certificate: all that lies there belongs to the run."""
MAX_ENTRIES = 20_000
_BLOCK = 2**20


def subject_steps(folder: Path, subjects: Sequence[Subject]) -> list[Step]:
    """Digest every released file that the certificate names, and look for files that it does not name."""
    steps: list[Step] = []
    found: dict[Path, str] = {}
    here: set[Path] = set()
    for subject in subjects:
        name = subject.name
        try:
            path = inside(folder, name)
        except InvalidEvidence as error:
            steps.append(Step(f"subject {name}", DIFFERENT, str(error)))
            continue
        if path in found:
            steps.append(Step(f"subject {name}", DIFFERENT, f"it is the file of subject {found[path]} once more"))
            continue
        found[path] = name
        if path.parent.is_dir():
            here.add(path.parent)
        steps.append(_subject_step(f"subject {name}", path, path.parent, folder, subject.digest.sha256))
    return [*steps, *_uncertified_steps(folder.resolve(), here, set(found))]


def _subject_step(step: str, path: Path, parent: Path, folder: Path, stated: str) -> Step:
    if not os.path.lexists(path):
        # Where its folder is there and the certified file is not, what lies in the folder stands in its place: a
        # difference.
        gone = parent.is_dir() and parent != folder.resolve()
        detail = "its folder is here and the file is not" if gone else "the file is not beside the certificate"
        return Step(step, DIFFERENT if gone else ABSENT, detail)
    try:
        with section(0.8):
            found = _digest(path)
    except OutOfTime:
        return Step(step, ABSENT, f"{UNFINISHED}: digest it with a larger limit of time")
    except OSError as error:
        return Step(step, DIFFERENT, f"the file cannot be read: {error.strerror or type(error).__name__}")
    if found is None:
        return Step(step, DIFFERENT, "it is not a regular file")
    detail = f"SHA-256 {found[:12]}…"
    return judge(step, found == stated, detail, f"{detail}, certified {stated[:12]}…: another file")


def _digest(path: Path) -> str | None:
    """SHA-256 of a regular file; None for anything else. Read in blocks, between which a time limit can act."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _uncertified_steps(root: Path, here: set[Path], certified: set[Path]) -> list[Step]:
    """Files of the release that are not certified: any in the folders of subjects, loadable ones elsewhere."""
    release = bool(here - {root}) or any(os.path.lexists(root / mark) for mark in _MARKS)
    # Beside a certificate that lies in somebody's download folder, only what a loader would take is looked at.
    tops = [root] if release else sorted(here)
    steps: list[Step] = []
    seen, count = set[str](), 0
    for top in tops:
        for path, is_folder in _walk(top, deep=release or top != root):
            if is_folder is None:
                name = path.relative_to(root).as_posix()
                steps.append(Step(f"subject {name}", DIFFERENT, "the folder cannot be listed"))
                continue
            count += 1
            if count > MAX_ENTRIES:
                return [*steps, Step("release", DIFFERENT, f"the folder holds more than {MAX_ENTRIES} entries")]
            name = path.relative_to(root).as_posix()
            if name in seen or path in certified:
                continue
            seen.add(name)
            strict = any(parent in here and (release or parent != root) for parent in path.parents)
            try:
                why = _fault(root, path, is_folder, strict)
            except OSError as error:  # a path of more characters than the system takes, a folder without permission
                why = f"it cannot be looked at ({error.strerror or type(error).__name__})"
            if why:
                steps.append(Step(f"subject {name}", DIFFERENT, why))
    return steps


def _walk(top: Path, *, deep: bool) -> Iterator[tuple[Path, bool | None]]:
    """Entries below a folder, and whether each is a folder: None for one that cannot be listed.

    Links to folders are entries and are not followed.
    """
    stack = [top]
    while stack:
        folder = stack.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            yield folder, None
            continue
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            yield Path(entry.path), is_folder
            if is_folder and deep:
                stack.append(Path(entry.path))


def _fault(root: Path, path: Path, is_folder: bool, strict: bool) -> str:
    """Why an entry that is no subject does not belong there; empty where it may stay."""
    name = path.relative_to(root).as_posix()
    if printable(name) != name:
        return "its name holds characters that cannot be shown"
    mode = path.lstat().st_mode
    if is_folder:
        return "it is a folder where a file of dpaudit belongs" if name in OWN_FILES else ""
    if stat.S_ISLNK(mode):
        stays = not strict and path.is_file() and root in path.resolve().parents and not _is_loaded(path)
        return "" if stays else "it is a link that is not certified"
    if not stat.S_ISREG(mode):
        return "it is neither a file nor a folder"
    if name in OWN_FILES or _AMENDMENT.fullmatch(name):
        return ""
    if strict and path.name == PRIVACY_JSON:
        return ""
    if _is_loaded(path):
        return "weights, code or settings that a loader would take lie beside the certified files and are not certified"
    return "it lies in a folder of certified files and is not certified: remove it or ask who made it" if strict else ""


def _is_loaded(path: Path) -> bool:
    return path.suffix.lower() in LOADED_SUFFIXES or LOADED_NAMES.fullmatch(path.name) is not None
