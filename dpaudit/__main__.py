"""``python -m dpaudit``."""

from dpaudit.cli import run

if __name__ == "__main__":
    run()
