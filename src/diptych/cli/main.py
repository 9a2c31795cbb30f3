"""`diptych VERB ...`: a file in `verbs/` is a verb. Nothing here imports torch; each verb does when it must."""

import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from diptych import __version__
from diptych.cli.options import Parser
from diptych.errors import DiptychError, TextCut, nearest

ABOUT = "Which CLIP method is best for my pictures? Adapt, compare, use the winner."
EXAMPLES = """\
diptych compare                              the first table, on built-in drawings, in about two minutes
diptych compare ./photos                     photos/<class>/*.jpg: every method that fits, one table, the winner
diptych predict winner.safetensors new/      what the winner says about other pictures
diptych train clip --data ./pairs            a CLIP of your own, from pictures with texts"""
MISTAKE, BUG, STOPPED, PIPE = 2, 1, 130, 141  # exit codes


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; -> the exit code. Mistakes are one message on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    # OpenMP's threads sleep while they wait; spinning, they take the cores from each other on a machine that has more
    # to do, and a fit becomes ten times slower. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = bool(os.environ.get("DIPTYCH_DEBUG"))
    if not debug:
        warnings.simplefilter("ignore")  # other libraries' words to their own callers
        if os.environ.get("RANK", "0") == "0":
            warnings.simplefilter("default", TextCut)
            warnings.showwarning = show_warning
    try:
        code = run(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        goes_on = words[:1] and words[0] in verbs() and continues(load(words[0]), words)
        return say("stopped; the same command continues where it was" if goes_on else "stopped", STOPPED)
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - stays open until the process ends
        return PIPE
    except (DiptychError, OSError, MemoryError) as error:
        if debug:
            raise
        return say(f"error: {message_of(error)}", MISTAKE)
    except Exception as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {error}"
        return say(f"error: this is a bug in diptych: {what}\nrun again with DIPTYCH_DEBUG=1 for the traceback", BUG)


def continues(verb: ModuleType, words: Sequence[str]) -> bool:
    """Whether the same words go on with stopped work: CONTINUES is True, or the option under which they do."""
    said = getattr(verb, "CONTINUES", False)
    return said in words if isinstance(said, str) else said


def message_of(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory for this; close other programs, or try fewer pictures or a smaller model"
    if isinstance(error, OSError) and not isinstance(error, DiptychError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{(error.strerror or str(error) or type(error).__name__).lower()}"
    return str(error)


def show_warning(message: Warning | str, *_: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        if words[1:]:
            return run([words[1], "--help"])
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"diptych {__version__}")
        return 0
    name = words[0]
    if name not in verbs():
        kind = "option" if name.startswith("-") else "verb"
        raise DiptychError(f'no {kind} "{name}"{nearest(name, verbs())}')
    verb = load(name)
    parser = Parser(name, verb.__doc__ or "", verb.EXAMPLES)
    verb.options(parser)
    given = parser.read(words[1:])
    return 0 if given is None else verb.run(given)


def verbs() -> list[str]:
    folder = Path(__file__).parent / "verbs"
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def load(name: str) -> ModuleType:
    """A verb: its docstring is its help; it has EXAMPLES, `options(parser)` and `run(given) -> exit code`.

    PLACE: among the verbs of the overview. CONTINUES: whether the same command goes on with what was stopped, or the
    option under which it does.
    """
    return importlib.import_module(f"diptych.cli.verbs.{name}")


def overview() -> str:
    modules = {name: load(name) for name in verbs()}
    order = sorted(modules, key=lambda name: modules[name].PLACE)
    lines = [f"  {name:<10}{(modules[name].__doc__ or '').strip().splitlines()[0]}" for name in order]
    examples = [f"  {line}" for line in EXAMPLES.splitlines()]
    parts = ["usage: diptych VERB ...\n", ABOUT, "\nverbs:", *lines, "\nexamples:", *examples]
    return "\n".join([*parts, "\n`diptych VERB --help` tells more; DIPTYCH_DEBUG=1 shows tracebacks."])


if __name__ == "__main__":
    sys.exit(main())
