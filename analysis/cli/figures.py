"""python -m analysis figures study=NAME [store=FOLDER] [out=FOLDER] [--rebuild]

Writes the study's figures as PNG, SVG and PDF. Default folder: outputs/analysis/STUDY.
"""

from collections.abc import Sequence
from pathlib import Path

from analysis.cli import options
from analysis.show import figures, style
from iris.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    if any(word in ("--help", "-h") for word in arguments):
        print(__doc__)
        return 0
    given = options.read(arguments, ("out",))
    frames = options.frames(given)
    folder = Path(given.settings.get("out", f"outputs/analysis/{frames.study}")).expanduser()
    for name, draw in figures.of(frames).items():
        figure = draw(frames)
        if figure is None:
            print(f"{name}: nothing to show")
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            paths = style.save(figure, folder / name)
        except OSError as error:
            raise UserError(f"out={folder}: {error.strerror}.") from error
        print(f"{name}: {', '.join(str(path) for path in paths)}")
    return 0
