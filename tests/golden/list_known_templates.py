"""Write bee_integrations/text/known_templates.txt from the templates in tests/reference/templates.

python tests/golden/list_known_templates.py
"""

from __future__ import annotations

from pathlib import Path

from bee_integrations.text.known_templates import LIST, fingerprint

TEMPLATES = Path(__file__).resolve().parent.parent / "reference" / "templates"


def main() -> None:
    """Overwrite the list."""
    files = sorted(TEMPLATES.glob("*.jinja"), key=lambda path: path.name.lower())
    lines = [f"{fingerprint(path.read_text(encoding='utf-8'))} {path.stem}\n" for path in files]
    LIST.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} templates in {LIST}")


if __name__ == "__main__":
    main()
