"""Make a Hugging Face Space of this checkout, or bring one up to date, as space.yaml says.

    python .huggingface/deploy.py USER/SPACE --hardware t4-small --dry-run

Without --hardware nothing that costs is asked for: a new Space gets cpu-basic, an old one keeps what it has.
It needs a token that may write: `hf auth login`, or the variable HF_TOKEN.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, SpaceCard, Volume
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

ROOT = Path(__file__).parents[1]
LARGEST_FILE_BYTES = 10 * 10**6  # the platform wants larger ones in LFS; nothing here should be
WITHOUT_SLEEP_TIME = ("cpu-basic", "zero-a10g")  # they sleep by rules of their own


class CannotDeploy(Exception):
    """One sentence for whoever deploys."""


@dataclass(frozen=True)
class Plan:
    """Everything that is going to happen, decided before anything does."""

    space: str
    hardware: str | None
    sleep_time_s: int | None
    is_private: bool
    variables: dict[str, str]
    secrets: dict[str, str]
    volumes: tuple[Volume, ...]
    files: dict[str, int]  # path: bytes
    front_matter: dict[str, Any]  # of README.md, in place of what stands there

    @property
    def url(self) -> str:
        return f"https://huggingface.co/spaces/{self.space}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where the Hub refuses; 2 after a bad option."""
    manifest = yaml.safe_load((ROOT / ".huggingface" / "space.yaml").read_text(encoding="utf-8"))
    options = _parser(manifest).parse_args(arguments)
    try:
        plan = planned(options, manifest)
        sys.stdout.writelines(f"{line}\n" for line in described(plan))
        if options.dry_run:
            sys.stdout.write("Dry run: nothing was sent.\n")
            return 0
        carry_out(plan)
    except CannotDeploy as error:
        return _failed(str(error), 2)
    except LocalTokenNotFoundError:
        return _failed("there is no token; run `hf auth login`, or set HF_TOKEN.", 1)
    except HfHubHTTPError as error:
        return _failed(error.server_message or str(error).splitlines()[0], 1)
    except (HTTPError, OSError):
        return _failed("the Hub cannot be reached.", 1)
    sys.stdout.write(f"{plan.url} is being built; `hf spaces logs {plan.space}` shows how.\n")
    return 0


def planned(options: argparse.Namespace, manifest: dict[str, Any]) -> Plan:
    """Raises CannotDeploy: no name of a Space, a secret without a value, or a file that is too large."""
    try:
        validate_repo_id(options.space)
    except HFValidationError:
        raise CannotDeploy(f"{options.space!r} is not the name of a Space; write USER/SPACE.") from None
    if "/" not in options.space:
        raise CannotDeploy(f"{options.space!r} names no user; write USER/SPACE.")
    missing = [name for name in options.secret if not os.environ.get(name)]
    if missing:
        raise CannotDeploy(f"--secret {missing[0]}: set the variable {missing[0]} to its value, here.")
    files = files_of(manifest)
    for path, size in files.items():
        if size > LARGEST_FILE_BYTES:
            raise CannotDeploy(f"{path} has {size / 1e6:.1f} MB; at most {LARGEST_FILE_BYTES / 1e6:g} are uploaded.")
    costs = options.hardware and options.hardware not in WITHOUT_SLEEP_TIME
    return Plan(
        space=options.space,
        hardware=options.hardware,
        sleep_time_s=manifest["sleep_time_s"] if costs else None,
        is_private=options.private,
        variables=manifest["variables"],
        secrets={name: os.environ[name] for name in options.secret},
        volumes=tuple(Volume(type="model", **volume) for volume in manifest["volumes"]),
        files=files,
        front_matter=manifest["front_matter"].get(options.hardware, {}),
    )


def files_of(manifest: dict[str, Any], root: Path = ROOT) -> dict[str, int]:
    """What is uploaded, and how many bytes each has."""
    paths = (path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file())
    chosen = filter_repo_objects(paths, allow_patterns=manifest["upload"], ignore_patterns=manifest["leave_out"])
    return {path: (root / path).stat().st_size for path in chosen}


def described(plan: Plan) -> Iterator[str]:
    """The plan in words; of a secret only its name."""
    yield f"Space      {plan.space}{' (private)' if plan.is_private else ''}"
    sleep = f", sleeps after {plan.sleep_time_s} s without visitors" if plan.sleep_time_s else ""
    yield f"Hardware   {plan.hardware or 'as it is; cpu-basic if the Space is new'}{sleep}"
    yield from (f"Variable   {name}={value}" for name, value in plan.variables.items())
    yield from (f"Secret     {name}" for name in plan.secrets)
    yield from (f"Volume     {volume.source} at {volume.mount_path}" for volume in plan.volumes)
    yield from (f"README.md  {name}: {value}" for name, value in plan.front_matter.items())
    yield f"Files      {len(plan.files)}, {sum(plan.files.values()) / 1e6:.1f} MB; what else the Space has is deleted"
    yield from (f"  {size:>9,}  {path}" for path, size in plan.files.items())


def carry_out(plan: Plan) -> None:
    """Variables, secrets and volumes come before the files, whose upload starts the build; hardware comes last."""
    api = HfApi()
    api.create_repo(plan.space, repo_type="space", space_sdk="gradio", private=plan.is_private or None, exist_ok=True)
    for name, value in plan.variables.items():
        api.add_space_variable(plan.space, name, value)
    for name, value in plan.secrets.items():
        api.add_space_secret(plan.space, name, value)
    if plan.volumes:
        api.set_space_volumes(plan.space, list(plan.volumes))
    with tempfile.TemporaryDirectory() as folder:
        write_files(plan, Path(folder))
        api.upload_folder(
            repo_id=plan.space, repo_type="space", folder_path=folder, delete_patterns="*", commit_message="Deploy"
        )
    if plan.hardware:
        api.request_space_hardware(plan.space, plan.hardware, sleep_time=plan.sleep_time_s)


def write_files(plan: Plan, folder: Path) -> None:
    """What is uploaded, with the front matter that fits the hardware: no 14 GB are preloaded that are not served."""
    for path in plan.files:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target)
    card = SpaceCard.load(folder / "README.md", ignore_metadata_errors=False)
    for name, value in plan.front_matter.items():
        card.data[name] = value
    if plan.front_matter:
        card.save(folder / "README.md")


def _parser(manifest: dict[str, Any]) -> argparse.ArgumentParser:
    kinds = [f"{name}: {words}" for name, words in manifest["hardware"].items()]
    parser = argparse.ArgumentParser("deploy.py", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("space", metavar="USER/SPACE")
    parser.add_argument("--hardware", choices=list(manifest["hardware"]), metavar="NAME", help="; ".join(kinds))
    parser.add_argument("--private", action="store_true", help="a new Space is for its owner only")
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        choices=manifest["secrets"],
        metavar="NAME",
        help=f"take this over from the environment: {', '.join(manifest['secrets'])}; may be given several times",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and end")
    return parser


def _failed(words: str, exit_code: int) -> int:
    sys.stderr.write(f"deploy.py: {words}\n")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
