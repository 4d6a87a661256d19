"""`mmssl VERB [RECIPE | RUN] [flags] [key=value ...]`. Verbs that talk import nothing heavy."""

from __future__ import annotations

import os
import sys

from mmssl.registry import UnknownName, suggest
from mmssl.verbs import VERBS, Usage

HELP = """usage: mmssl VERB [RECIPE | RUN] [--json] [-m] [key=value ...]

Train:     pretrain RECIPE [key=value ...]       such as mmssl pretrain image/mae data=sample
           pretrain -m RECIPE,RECIPE key=a,b     a sweep over recipes and values
           resume RUN [key=value ...]            goes on with a stopped run, exactly
           finetune RUN | CKPT | timm:NAME [data=...] [scratch=true] [mixup=0.8]     with labels and a linear head
Before:    plan RECIPE [memory=24GB]             memory, largest batch, operations, time, disk, before any step
           doctor [RECIPE | RUN]                 what of this machine stands in the way, with remedies
Measure:   evaluate RUN | CKPT | timm:NAME | hf:DIR ... [protocol=knn,linear] [data=...]     several: compares them
           evaluate RUN watch=true [best=knn]    scores checkpoints as they land, apart from training
           bench RECIPE                          step time, samples/s, data wait, memory
Take away: embed RUN | CKPT | timm:NAME out=FILE [what=features | imputed] [data=...]
           export RUN | CKPT format=timm|hf|onnx|torch|safetensors out=DIR [license=WORD]
Look:      list [recipes | modalities | maskers | ...]     doc PART     show RECIPE     preview RECIPE [out=FILE]
Data:      audit data=... [against=...]          counts, sizes, unreadable files, duplicates, overlap
           shards data=folder data.root=DIR out=DIR [size=256MB] [samples=N]     writes tar shards
Runs:      runs [DIR] [KEY=VALUE ...] [sort=SCORE]      a table, such as runs recipe='image/*' optim.lr=1e-4 sort=knn
           report RUN ... [out=FILE.html]        of one run, or of several over each other

--json prints exactly one object on standard output. Any argument of any part is a key: masker.ratio=0.6.
`mmssl list recipes` shows what can be trained, `mmssl doc PART` what a part takes."""

# flags that only some verbs take
TAKEN = {
    "-m": ("pretrain",), "--multirun": ("pretrain",), "--trust": ("finetune", "evaluate", "embed", "export"),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """The console command.

    Returns:
        0, or 1 for a run that diverged, or 2 for a command line or configuration that was refused.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] in ("--version", "version"):
        from mmssl import __version__

        print(__version__)
        return 0
    flags = [word for word in words if word.startswith("-")]
    try:
        verb, *rest = [word for word in words if not word.startswith("-")] or [""]
        if verb not in VERBS:
            raise Usage(f"there is no verb {verb!r}{suggest(verb, VERBS)}. `mmssl --help` lists them.")
        if {"-h", "--help"} & set(flags):
            print(HELP)
            return 0
        if unknown := [flag for flag in flags if flag not in ("--json", "-m", "--multirun", "--trust")]:
            raise Usage(f"there is no flag {unknown[0]!r}{suggest(unknown[0], ['--json', '-m', '--trust'])}")
        for flag, verbs in TAKEN.items():
            if flag in flags and verb not in verbs:
                raise Usage(f"`{verb}` takes no {flag}, which is for {', '.join(verbs)}")
        code = VERBS[verb](rest, flags) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has seen enough, as `head` has; the interpreter would complain once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, UnknownName) as error:
        print(f"mmssl: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
