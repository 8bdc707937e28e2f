"""Commands out of the project's pages."""

from __future__ import annotations

import re
from pathlib import Path


def shell_lines(page: Path) -> list[str]:
    """The lines of every bash block of a page, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
