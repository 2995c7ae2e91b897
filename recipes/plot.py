"""Pictures of what the recipes wrote, and of what an adapter looks at.

    python recipes/plot.py curves --logdir outputs/smollm2_135m_cpu --output docs/results/smollm2_135m_cpu.svg
    python recipes/plot.py passkey --results outputs/evaluations/FOLDER --method adapter --output passkey.svg
    python recipes/plot.py perplexity --results outputs/evaluations/FOLDER --output perplexity.svg
    python recipes/plot.py scaling --results docs/results/scaling.json --output docs/results/scaling.svg
    python recipes/plot.py ablations --results outputs/ablations/smollm2/results.json --study twins --output twins.svg
    python recipes/plot.py attention --config recipes/evaluations/smollm2.yaml --tokens 16K --output attention.svg
    python recipes/plot.py attention --config recipes/evaluations/smollm2.yaml --document book.txt \\
        --question "Who is Ahab?" --fact "the captain of the Pequod" --output attention.png

- `curves`: both losses of a training run, from its TensorBoard files, beside the local window alone on the same
  labels. Held-out losses have marks; those of single training steps are thin lines.
- `passkey`: the scores of one method over length and depth, from the samples of an evaluation.
- `perplexity`: perplexity against length, a line for each method.
- `accuracy`: accuracy against length, a line for each method, with intervals and numbers of samples.
- `scaling`: time and memory against length, from what `benchmark.py scaling` wrote.
- `ablations`: one study of `ablations.py`, with 95 % intervals.
- `attention`: the attention that each chunk has from each token of an answer, with model and adapter of an evaluation
  (`key=value` overrides it); the numbers go to a JSON file beside the picture.

All are readable without colors; the name's ending chooses SVG or PNG.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lib.command_line import parser_of, sentences
from plots.ablations import ablations
from plots.accuracy import accuracy
from plots.attention import attention
from plots.evaluation import passkey, perplexity
from plots.scaling import scaling
from plots.training import curves


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("curves", help="losses of a training run")
    one.add_argument("--logdir", type=Path, required=True, help="the run's output folder")
    one.set_defaults(run=curves)
    heat = commands.add_parser("passkey", help="scores over length and depth")
    heat.add_argument("--task", default="passkey", help="another task with depths (default: passkey)")
    heat.add_argument("--method", default="adapter", help="default: adapter")
    heat.add_argument("--bands", type=int, default=10, help="rows (default: 10)")
    heat.set_defaults(run=passkey)
    lines = commands.add_parser("perplexity", help="perplexity against length")
    lines.add_argument("--methods", help="only these, separated by commas (default: all that have samples)")
    lines.set_defaults(run=perplexity)
    right = commands.add_parser("accuracy", help="accuracy against length, a line for each method")
    right.add_argument("--task", default="passkey", help="another task with accuracies (default: passkey)")
    right.add_argument("--methods", help="only these, separated by commas (default: all that have samples)")
    right.set_defaults(run=accuracy)
    growth = commands.add_parser("scaling", help="time and memory against length")
    growth.set_defaults(run=scaling)
    study = commands.add_parser("ablations", help="one study of ablations")
    study.add_argument("--study", required=True, help="its name")
    study.set_defaults(run=ablations)
    folder = "folder of an evaluation"
    for each, holds in ((heat, folder), (lines, folder), (growth, "JSON"), (study, "JSON")):
        each.add_argument("--results", type=Path, required=True, help=f"the {holds}")
    several = f"the {folder}, or several; given again, for another panel"
    right.add_argument("--results", type=Path, nargs="+", action="append", required=True, help=several)
    right.add_argument("--titles", nargs="+", help="one for each panel")
    looked = commands.add_parser("attention", help="attention that each chunk has")
    looked.add_argument("--config", required=True, help="an evaluation, whose model and adapter read")
    looked.add_argument("--tokens", default="8K", help="length of the passkey prompt (default: 8K)")
    looked.add_argument("--depth", type=float, default=0.5, help="where the key stands, from 0 to 1 (default: 0.5)")
    looked.add_argument("--seed", type=int, default=0, help="chooses the key (default: 0)")
    looked.add_argument("--document", type=Path, help="a text file, instead of a passkey prompt")
    looked.add_argument("--question", help="what is asked about the document")
    looked.add_argument("--fact", help="a piece of the document: the chunk that holds it is marked")
    looked.add_argument("--new-tokens", type=int, default=8, help="the longest answer (default: 8)")
    looked.set_defaults(run=attention)
    for each in (one, heat, lines, right, growth, study, looked):
        each.add_argument("--output", type=Path, required=True, help="an .svg or .png file")
    args, rest = parser.parse_known_args(words)
    args.overrides = rest
    if args.overrides and args.run is not attention:
        parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
    args.run(args)


if __name__ == "__main__":
    with sentences():
        main()
