"""Build the bundled example texts from two Debian packages (run once; the results are committed).

`r-cran-janeaustenr` holds Jane Austen's novels as serialised R character vectors and `bible-kjv-text` (with
its reader, `bible-kjv`) the King James Bible. Both are unpacked, not installed:

    apt-get download bible-kjv bible-kjv-text r-cran-janeaustenr
    for f in bible-kjv*.deb; do dpkg -x "$f" kjv; done; dpkg -x r-cran-janeaustenr*.deb austen
    python examples/build_data.py kjv austen

Two novels are public (pretraining) and two private. The private ones are cut into records of 12 to 60 words;
whole paragraphs, drawn by seed, go to either the private training set or the held-out set, never to both.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import random
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

PUBLIC = ("SENSE AND SENSIBILITY", "NORTHANGER ABBEY")
PRIVATE = ("EMMA", "MANSFIELD PARK")
MIN_WORDS, TARGET_WORDS, MAX_WORDS = 12, 30, 60
SENTENCE_END = re.compile(r"""(?<=[.!?"')])(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.)\s+(?=["'(]?[A-Z])""")

README = """# Example texts

| file | lines | size | sha256 |
|---|---|---|---|
{rows}

Each file is xz-compressed UTF-8 text with one record per line.

- **Public** (tokenizer and pretraining): `kjv.txt.xz`, one verse per line, and `austen_public.txt.xz`,
  paragraphs of *Sense and Sensibility* and *Northanger Abbey*, long ones cut at sentence ends.
- **Private** (fine-tuning): `austen_private.txt.xz`, records of {min_words} to {max_words} words from *Emma*
  and *Mansfield Park*.
- **Held out** (evaluation, treated as public): `austen_heldout.txt.xz`, records of the same two novels made
  in the same way. A paragraph goes to the private set or to this one, never to both.

No line occurs twice, neither within a file nor in two files. "Private" is a role: every text is in the public
domain.

## Origin and licence

- King James Bible: Debian packages `bible-kjv-text` 4.38 (text) and `bible-kjv` 4.38 (the reader that prints
  it). The translation is of 1611 and in the public domain; in the United Kingdom alone, printing it is
  restricted by Crown letters patent. The packaged text comes from the Bible Retrieval System by Chip Chapin:
  "This file is provided for unrestricted use provided that this legend is included on all tape media and as
  a part of the software program in whole or part. Users may copy, modify or distribute this file at will."
- Jane Austen (1775-1817): Debian package `r-cran-janeaustenr` 1.0.0-1 (R package by Julia Silge, MIT; texts
  from Project Gutenberg). The novels are in the public domain.

## Rebuild

```
apt-get download bible-kjv bible-kjv-text r-cran-janeaustenr
for f in bible-kjv*.deb; do dpkg -x "$f" kjv; done; dpkg -x r-cran-janeaustenr*.deb austen
python examples/build_data.py kjv austen --seed {seed}
```
"""


def read_verses(root: Path) -> list[str]:
    """All verses, printed by the packaged reader (chapter headings are not indented, verses are)."""
    command = [root / "usr/bin/bible", "-p", root / "usr/lib", "-l100000", "gen1:1-rev22:21"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    verses = re.findall(r"^ +\d+ (\S.*?)\s*$", out, flags=re.MULTILINE)
    if len(verses) != 31_102:
        raise ValueError(f"expected 31,102 verses, got {len(verses)}")
    return verses


def r_strings(blob: bytes) -> list[str]:
    """A serialised R character vector (XDR, version 3) as a list of lines."""
    pos = 14  # "X\n" and three version integers, then the length of the encoding's name
    pos += 4 + struct.unpack_from(">i", blob, pos)[0]
    flags, count = struct.unpack_from(">ii", blob, pos)
    if flags & 0xFF != 16:
        raise ValueError("not an R character vector")
    pos += 8
    lines = []
    for _ in range(count):
        size = max(struct.unpack_from(">i", blob, pos + 4)[0], 0)
        lines.append(blob[pos + 8 : pos + 8 + size].decode("utf-8"))
        pos += 8 + size
    return lines


def read_novels(root: Path) -> dict[str, list[str]]:
    """Title -> paragraphs. The .rdb file is a row of [4-byte length][zlib stream]."""
    data = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    novels = {}
    while data:
        stream = zlib.decompressobj()
        blob, data = stream.decompress(data[4:]), stream.unused_data
        try:
            lines = r_strings(blob)
        except ValueError:
            continue
        paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
        clean = [" ".join(p.replace("_", "").split()) for p in paragraphs]
        novels[lines[0].strip().upper()] = [p for p in clean if p]
    return novels


def split_paragraph(paragraph: str) -> Iterator[str]:
    """The paragraph whole when short; else runs of sentences of TARGET_WORDS to MAX_WORDS where possible."""
    if len(paragraph.split()) <= MAX_WORDS:
        yield paragraph
        return
    current: list[str] = []
    for sentence in SENTENCE_END.split(paragraph):
        words = sentence.split()
        if current and (len(current) >= TARGET_WORDS or len(current) + len(words) > MAX_WORDS):
            yield " ".join(current)
            current = []
        current += words
    yield " ".join(current)


def write(folder: Path, name: str, lines: list[str]) -> str:
    """Compress the lines and return the file's row of the README."""
    data = lzma.compress(("\n".join(lines) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME)
    (folder / name).write_bytes(data)
    return f"| `{name}` | {len(lines):,} | {len(data):,} bytes | `{hashlib.sha256(data).hexdigest()}` |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kjv", type=Path, help="folder with bible-kjv and bible-kjv-text unpacked")
    parser.add_argument("austen", type=Path, help="folder with r-cran-janeaustenr unpacked")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--private", type=int, default=3000, help="records of the private set")
    parser.add_argument("--heldout", type=int, default=600, help="records of the held-out set")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    novels = read_novels(args.austen)
    seen: set[str] = set()

    def fresh(records: Iterator[str], min_words: int) -> list[str]:
        kept = [r for r in records if min_words <= len(r.split()) <= MAX_WORDS and r not in seen]
        kept = list(dict.fromkeys(kept))
        seen.update(kept)
        return kept

    verses = list(dict.fromkeys(read_verses(args.kjv)))
    seen.update(verses)
    public = [r for title in PUBLIC for p in novels[title] for r in fresh(split_paragraph(p), 5)]
    paragraphs = [p for title in PRIVATE for p in novels[title]]
    random.Random(args.seed).shuffle(paragraphs)
    sets: dict[str, list[str]] = {"heldout": [], "private": []}
    pending = iter(paragraphs)
    for role, size in (("heldout", args.heldout), ("private", args.private)):
        while len(sets[role]) < size:
            sets[role] += fresh(split_paragraph(next(pending)), MIN_WORDS)
        del sets[role][size:]

    args.out.mkdir(parents=True, exist_ok=True)
    rows = [
        write(args.out, "kjv.txt.xz", verses),
        write(args.out, "austen_public.txt.xz", public),
        write(args.out, "austen_private.txt.xz", sets["private"]),
        write(args.out, "austen_heldout.txt.xz", sets["heldout"]),
    ]
    text = README.format(rows="\n".join(rows), min_words=MIN_WORDS, max_words=MAX_WORDS, seed=args.seed)
    (args.out / "README.md").write_text(text, encoding="utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
