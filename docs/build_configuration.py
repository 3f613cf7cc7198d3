"""Write docs/reference/configuration.md from the models that read a configuration."""

from pathlib import Path

from dpaudit.runs.reference import markdown

if __name__ == "__main__":
    page = Path(__file__).parent / "reference" / "configuration.md"
    page.write_text(markdown(), encoding="utf-8")
    print(f"wrote {page}")
