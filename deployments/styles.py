"""The styles file: named pieces of prompts, in the CSV that AUTOMATIC1111's user interface keeps."""

import csv
from pathlib import Path

from ingress.settings import Style


def read_styles(path: Path) -> tuple[Style, ...]:
    """The styles in a CSV file with the columns name, prompt and negative_prompt, in UTF-8.

    Of two with one name the later counts. Raises ValueError, which names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if "name" not in (reader.fieldnames or ()):
                raise ValueError(f"styles_file: {path} must begin with the line name,prompt,negative_prompt")
            styles = {row["name"]: _style(row) for row in reader if row["name"]}
    except OSError as error:
        raise ValueError(f"styles_file: cannot read {path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"styles_file: {path} is not CSV in UTF-8: {error}") from None
    return tuple(styles.values())


def _style(row: dict[str, str]) -> Style:
    """A line of the name alone divides the list, and has no texts."""
    return Style(name=row["name"], prompt=row.get("prompt"), negative_prompt=row.get("negative_prompt"))
