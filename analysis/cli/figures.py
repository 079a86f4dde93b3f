"""python -m analysis figures study=NAME

Writes the study's figures as PNG, SVG and PDF.

    store=FOLDER   the store (default iris-store)
    out=FOLDER     where to write (default outputs/analysis/STUDY)
    --rebuild      read all manifests of the study again
"""

from pathlib import Path

from analysis.cli import options
from analysis.show import figures, style
from iris.errors import UserError
from sweeps.cli.arguments import Arguments


def run(given: Arguments) -> int:
    """Run the command."""
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
