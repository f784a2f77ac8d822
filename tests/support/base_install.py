"""What a process with the base install, and some extras, can do: the rest is refused an import.

Usage: python -m tests.support.base_install LIBRARY,LIBRARY < COMMANDS, a JSON list of lists of
words. Writes a JSON list of [status, output, errors] to standard output.
"""

import contextlib
import io
import json
import sys


class Refusing:
    """As if libraries were not installed."""

    def __init__(self, libraries):
        self.libraries = set(libraries)

    def find_spec(self, name, path=None, target=None):
        """Refuse a library of the list; leave all others to the next finder."""
        if name.partition(".")[0] in self.libraries:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def refuse(libraries):
    """Refuse to import some libraries from now on."""
    sys.meta_path.insert(0, Refusing(libraries))
    loaded = {name.partition(".")[0] for name in sys.modules} & set(libraries)
    if loaded:
        raise RuntimeError(f"loaded already: {loaded}")


def main():
    """Run each command in this process, as the program `flower-dhb` would."""
    refuse(sys.argv[1].split(","))
    from flower_dhb.cli import main

    found = []
    for words in json.load(sys.stdin):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
        found.append([status, out.getvalue(), err.getvalue()])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
