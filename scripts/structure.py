"""The structure of the code in figures: rooms, arrows, cycles, sizes, names defined twice.

    python scripts/structure.py [FOLDER]

FOLDER is a checkout; the default is the one of this file. A room is a module or package at the top
of `service/`. An arrow means that one room imports another. The folders that run under the SDK's
Python import their own modules by plain names and stand alone: their sizes count, their imports do
not.
"""

import argparse
import ast
import graphlib
import io
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("service", "model_build")
CLIENT = "client"
"""The folder of the client: a package of its own, which shares no code with the others."""
PARTS = (*PACKAGES, CLIENT, "tests", "benchmarks", "scripts")
FLAT = ("device", "device_host", "card", "sdk", "compiler")
"""Folders whose modules import each other by plain names."""
MOST_ARGUMENTS = 5
"""Largest number of arguments of a constructor, without `self`."""


def name_of(file: Path, root: Path = ROOT) -> str:
    """Return the dotted name of the module in `file`."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def modules(root: Path = ROOT) -> list[Path]:
    """Return the files of our packages, sorted, without those that stand alone."""
    files = (file for package in PACKAGES for file in (root / package).rglob("*.py"))
    return sorted(file for file in files if not is_flat(file, root))


def is_flat(file: Path, root: Path = ROOT) -> bool:
    """Return whether `file` is in a folder whose modules import each other by plain names."""
    return file.parent.name in FLAT and not (file.parent / "__init__.py").exists()


def imports(file: Path, root: Path = ROOT) -> set[str]:
    """Return the names of the modules that `file` imports, also those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise SystemExit(f"{file}:{node.lineno}: a relative import; name the module whole")
            found |= {_module(node.module, alias.name, root) for alias in node.names}
    return found


def arrows(root: Path = ROOT) -> dict[str, set[str]]:
    """Return for each of our modules those of our modules that it imports."""
    return {
        name_of(file, root): {name for name in imports(file, root) if is_ours(name)}
        for file in modules(root)
    }


def cycle(root: Path = ROOT) -> list[str]:
    """Return the modules of an import cycle in their order; empty if there is none."""
    try:
        graphlib.TopologicalSorter(arrows(root)).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def constructors(root: Path = ROOT) -> dict[str, int]:
    """Return the number of arguments of each `__init__`, by "module.Class"."""
    return {
        f"{name_of(file, root)}.{found.name}": len(_arguments(method))
        for file, found in classes(root, (*PACKAGES, CLIENT))
        for method in found.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
    }


def classes(
    root: Path = ROOT, folders: Sequence[str] = PACKAGES
) -> Iterator[tuple[Path, ast.ClassDef]]:
    """Yield each class at the top of a module in `folders`, including those that stand alone."""
    for folder in folders:
        for file in sorted((root / folder).rglob("*.py")):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    yield file, node


def defined_twice(root: Path = ROOT) -> dict[str, list[str]]:
    """Return the names of classes that several modules define, with these modules."""
    found: dict[str, list[str]] = {}
    for file, node in classes(root):
        found.setdefault(node.name, []).append(name_of(file, root))
    return {name: sorted(places) for name, places in sorted(found.items()) if len(places) > 1}


def is_ours(name: str) -> bool:
    return name.split(".")[0] in PACKAGES


def _module(package: str, name: str, root: Path) -> str:
    """Return `package.name` if it is one of our modules, else `package`."""
    path = root.joinpath(*package.split("."), name)
    return f"{package}.{name}" if path.with_suffix(".py").is_file() or path.is_dir() else package


def _arguments(method: ast.FunctionDef) -> list[ast.arg]:
    return [*method.args.posonlyargs, *method.args.args, *method.args.kwonlyargs][1:]


def _rooms(root: Path) -> tuple[list[str], set[tuple[str, str]]]:
    service = root / "service"
    rooms = sorted(
        path.stem
        for path in service.iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or any(path.glob("*.py"))
    )
    crossing = {
        (name.split(".")[1], imported.split(".")[1])
        for name, found in arrows(root).items()
        for imported in found
        if name.startswith("service.") and imported.startswith("service.")
    }
    return rooms, {(start, end) for start, end in crossing if start != end}


def _lines(folder: Path) -> Counter[Path]:
    return Counter({file: len(file.read_text().splitlines()) for file in folder.rglob("*.py")})


def code_lines(file: Path) -> int:
    """Return the number of lines of `file` with code: no blank lines, comments or docstrings."""
    source = file.read_text(encoding="utf-8")
    prose = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in (*layout, tokenize.ENDMARKER)
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(code - prose)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT)
    root: Path = parser.parse_args().folder.resolve()
    rooms, crossing = _rooms(root)
    twice = defined_twice(root)
    many = {name: n for name, n in constructors(root).items() if n > MOST_ARGUMENTS}
    print(f"rooms at the top of service/   {len(rooms)}")
    print(f"arrows between them            {len(crossing)}")
    print(f"import cycle                   {' -> '.join(cycle(root)) or 'none'}")
    print(f"classes' names defined twice   {len(twice)}: {', '.join(twice) or 'none'}")
    print(f"constructors of more than {MOST_ARGUMENTS}    {len(many)}: {_listed(many)}")
    sizes: Counter[Path] = Counter()
    for part in PARTS:
        lines = _lines(root / part)
        if part in PACKAGES:
            sizes += lines
        code = sum(map(code_lines, lines))
        print(f"lines of {part:21} {lines.total():6}, of code {code:6}")
    [(largest, lines_of_largest)] = sizes.most_common(1)
    print(f"largest file                   {largest.relative_to(root)}, {lines_of_largest} lines")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


if __name__ == "__main__":
    main()
