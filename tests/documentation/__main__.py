"""``tox -e tables``: updates the generated tables of README and docs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from documentation.pages import pages, renewed  # noqa: E402


def main() -> int:
    """Write each page whose tables have changed, and print its name."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := renewed(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"docs: {page.name} is renewed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
