"""`focus-peft publish`: an adapter with card, results and recipe, to a folder or to the Hub."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import UNEXPECTED, USAGE, CommandError, add_command, first_line, say


if TYPE_CHECKING:  # what loads torch and PEFT is imported when the options have been read
    from ..hub.repository import Comparison, Upload


EXISTS, HUB = 5, 6
# The keys of `hub.weights.DTYPES`
DTYPES = ("float32", "bfloat16", "float16")
EXIT_CODES = """\
exit codes:
  0    published (or written, or shown)
  1    unexpected failure (see --debug)
  2    wrong usage, or what is given cannot be published
  5    files are there already and differ (see --overwrite), or the folder cannot be written
  6    the Hub refused or did not answer; the same command sends what has not arrived
  130  interrupted with Ctrl-C
"""
DESCRIPTION = """\
Publishes an adapter with a card that says what it is, what it was trained on and what was measured. Safetensors, YAML,
JSON, Markdown and one picture; no pickle is ever opened or sent. Sign in before with `hf auth login`, or set HF_TOKEN.

  focus-peft publish --adapter outputs/mine --repo me/mine --license apache-2.0 --dry-run
  focus-peft publish --adapter outputs/mine --output hub/mine --license apache-2.0 --results results/*.json
  focus-peft publish --folder hub/mine --repo me/mine --private --tag v1.0
"""


# What the card is made of
CARD_OPTIONS = ("license", "base_model", "config", "results", "figure", "notes", "dtype")


def add_publish(commands: Any) -> None:
    """Add the command to the parser's commands."""
    help = "put an adapter with its card into a folder or on the Hub"
    publish = add_command(commands, "publish", help, description=DESCRIPTION, epilog=EXIT_CODES)
    publish.set_defaults(run=run_publish)
    what = publish.add_mutually_exclusive_group(required=True)
    what.add_argument("--adapter", metavar="DIR", help="a checkpoint, or the output folder of a training run")
    what.add_argument("--folder", metavar="DIR", help="a folder that --output wrote: upload it as it is")
    where = publish.add_argument_group("where to")
    add = where.add_argument
    add("--repo", metavar="NAME", help="user/name or organization/name on the Hub")
    add("--output", metavar="DIR", help="write the folder here and upload nothing (--repo is then only for the card)")
    add("--revision", metavar="BRANCH", help="a branch; it is made if it is not there (default: main)")
    add("--tag", help="tag the upload; a tag that is there is never moved")
    add("--private", action="store_true", default=None, help="make the repository private")
    add("--overwrite", action="store_true", help="replace files that are there and differ")
    add("--dry-run", action="store_true", help="print files, sizes and card; write and upload nothing")
    card = publish.add_argument_group("what the card is made of, with --adapter")
    add = card.add_argument
    add("--license", metavar="ID", help="required: the adapter's license, for example apache-2.0")
    add("--base-model", metavar="NAME", help="the base model on the Hub (default: what the configuration says)")
    add("--config", metavar="FILE", help="the recipe of the training (default: recipe.yaml of the run)")
    add("--results", metavar="FILE", nargs="+", help="results as JSON (docs/publishing.md describes them)")
    add("--figure", metavar="FILE", help="a picture of the results, .svg or .png")
    add("--notes", metavar="FILE", help="Markdown to put into the card, on data, purpose and limits")
    add("--dtype", choices=DTYPES, help="round the weights: bfloat16 halves float32 (default: as they are)")


def run_publish(args: argparse.Namespace) -> None:
    """`focus-peft publish`: prepare the folder, then show, keep or upload it."""
    from ..hub.card import CARD_FILE
    from ..hub.repository import Upload

    with _exit_codes(), tempfile.TemporaryDirectory() as scratch:
        check_usage(args)
        keeps = args.output is not None and not args.dry_run
        files = files_of(args, Path(args.output) if keeps else Path(scratch, "adapter"))
        upload = None
        if args.repo is not None and args.output is None:
            upload = Upload(files, args.repo, args.revision, args.tag, args.private, args.overwrite)
        if args.dry_run:
            show(files, args, upload)
        elif upload is None:
            say(f"wrote {len(files)} files ({_total(files)}); look at {files[CARD_FILE]} before you upload them.")
            print(args.output)
        else:
            there = upload.compare()
            commit = upload.send(there)
            _say_others(there)
            say(f"published {len(files)} files ({_total(files)}) as {args.repo}, commit {commit}.")
            print(commit)


def check_usage(args: argparse.Namespace) -> None:
    """What argparse cannot see."""
    from ..hub.repository import check_repo_id

    given = [f"--{name.replace('_', '-')}" for name in CARD_OPTIONS if getattr(args, name) is not None]
    if args.folder is not None and given:
        raise ValueError(f"--folder is uploaded as it is; {', '.join(given)} can only be given with --adapter.")
    if args.folder is not None and args.output is not None:
        raise ValueError("--folder is a folder that --output wrote; give --repo to upload it.")
    if args.adapter is not None and args.license is None:
        raise ValueError("--license is missing; name the adapter's license, which the base model's may restrict.")
    if args.repo is None and args.output is None and not args.dry_run:
        raise ValueError("nowhere to publish to; give --repo NAME, or --output DIR.")
    if args.output is not None and (args.tag is not None or args.private):
        raise ValueError("--tag and --private are for uploads, and with --output nothing is uploaded; leave them out.")
    if args.repo is not None:
        check_repo_id(args.repo)


def files_of(args: argparse.Namespace, output: Path) -> dict[str, Path]:
    """The files of --folder; or those of --adapter and the options for its card, written to a folder."""
    from ..hub.release import Release, publishable_files

    if args.folder is not None:
        return publishable_files(args.folder)
    from ..registration import register

    register()  # PEFT reads the adapter's configuration
    options = {name: value for name in CARD_OPTIONS if (value := getattr(args, name)) is not None}
    release = Release(args.adapter, repo_id=args.repo, revision=args.revision, **options)
    files = release.write(output, args.overwrite)
    if release.source.left_out:
        say(f"left out of {args.adapter}: {', '.join(release.source.left_out)}.")
    return files


def show(files: Mapping[str, Path], args: argparse.Namespace, upload: Upload | None) -> None:
    """Print what would go, and what would stand in its way."""
    from ..hub.card import CARD_FILE
    from ..hub.errors import HubError
    from ..hub.public_files import check_output

    there = None
    if upload is not None:
        try:
            there = upload.compare()
        except HubError as error:
            say(f"the repository was not compared. {error}")
    for name, file in files.items():
        print(f"{_size(file.stat().st_size):>10}  {name}{_status(name, there)}")
    print(f"{_total(files):>10}  in all\n")
    print(files[CARD_FILE].read_text(encoding="utf-8"))
    if args.output is not None:
        check_output(files.values(), Path(args.output), args.overwrite)
    if upload is not None and there is not None:
        _say_others(there)
        if not there.exists:
            say(f"there is no repository {args.repo}, or not for this token; it would be made.")
        upload.check(there)


def _say_others(there: Comparison) -> None:
    if there.others:
        say(f"other files in the repository stay as they are: {', '.join(there.others)}.")


def _status(name: str, there: Comparison | None) -> str:
    if there is None:
        return ""
    return "  (new)" if name in there.new else "  (differs)" if name in there.changed else "  (there already)"


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Give every error its exit code."""
    from ..hub.errors import HubError

    try:
        yield
    except BrokenPipeError:  # of whoever reads what is printed
        raise
    except Exception as error:
        kinds = ((HubError, HUB), (OSError, EXISTS), (ValueError, USAGE))
        code = next((code for kind, code in kinds if isinstance(error, kind)), UNEXPECTED)
        raise CommandError(first_line(error), code) from error


def _total(files: Mapping[str, Path]) -> str:
    return _size(sum(file.stat().st_size for file in files.values()))


def _size(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    return f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
