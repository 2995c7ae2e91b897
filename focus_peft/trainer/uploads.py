"""What a run uploads by itself: a list of what may go, and no pickle (see `hub.public`)."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from ..config import FocusConfig
from ..hub.card import CARD_FILE, MARK, CardFacts, add_tags, run_facts, write_run_card
from ..hub.public import check_nothing_private
from ..hub.public_files import write_files
from ..hub.run_identity import RunIdentity


logger = logging.getLogger(__name__)


class ListedUploads(Trainer):
    """A `Trainer` that uploads an adapter's weights, its configuration, card and recipe, and nothing else."""

    # What the run is, once it has begun
    identity: RunIdentity | None = None

    # More than six parameters: they are those of `Trainer.push_to_hub`
    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the adapter and upload it with the card of its run, as `Trainer.push_to_hub`.

        Args:
            commit_message, token, revision, private: As there. The upload is always waited for, whatever `blocking`.
            license (`str`, *optional*): For the card.
            tags (`list[str]`, *optional*): More tags for the card.

        Raises:
            ValueError: if a card of your own names a folder of this machine or a token, or for another argument.
        """
        license, tags = kwargs.pop("license", None), kwargs.pop("tags", None)
        if unknown := [name for name in kwargs if name != "model_name"]:
            raise ValueError(
                f"`{unknown[0]}` is not told in the adapter's card; write a README.md of your own into `output_dir`."
            )
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, **({} if private is None else {"private": private}))
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        options = {"token": token or self.args.hub_token, "revision": revision or self.args.hub_revision}
        facts = self._facts(str(self.args.output_dir), license)
        return self._upload(str(self.args.output_dir), facts, tags, commit_message=str(commit_message), **options)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Make the repository, as `Trainer.init_hf_repo`, whose default for its name is that of a folder.

        Raises:
            ValueError: if `hub_model_id` does not name it.
        """
        if self.args.hub_model_id is None:
            raise ValueError(
                "`hub_model_id` is None, so the repository would be called after `output_dir`, for everybody to read; "
                "name it."
            )
        super().init_hf_repo(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == "end":
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        options = {"token": self.args.hub_token, "revision": self.args.hub_revision, "commit_message": message}
        try:
            self._upload(checkpoint_folder, self._facts(checkpoint_folder), None, **options)
        except (HfHubHTTPError, OSError, ValueError) as error:
            logger.warning("A checkpoint could not be uploaded, and the run goes on: %s", error)

    def check_uploads(self) -> None:
        """Raise a ValueError if the first upload would: the adapter has another name, or a card of your own names what
        is private."""
        name = self.tuner.active_adapters[0]  # type: ignore[attr-defined]
        if name != "default":
            raise ValueError(
                f"`push_to_hub` uploads the adapter that is called 'default', but {name!r} is trained; leave "
                "`adapter_name` out where the adapter is made, or publish it after training."
            )
        check_nothing_private(self._own_card())

    def _own_card(self) -> list[Path]:
        """The card in `output_dir`, if it was not written here."""
        own = Path(str(self.args.output_dir), CARD_FILE)
        return [own] if own.is_file() and MARK not in own.read_text(encoding="utf-8") else []

    def _facts(self, folder: str, license: str | None = None) -> CardFacts:
        return run_facts(folder, FocusConfig.from_pretrained(folder), self.hub_model_id, license)

    def _upload(self, folder: str, facts: CardFacts, tags: Any, **options: Any) -> CommitInfo:
        """Upload the adapter of a folder, and wait for it: what goes is in a folder that is then removed."""
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch)
            write_files(target, Path(folder), replace(facts, revision=options["revision"]), mark=True)
            for own in self._own_card():
                shutil.copyfile(own, target / CARD_FILE)
            if tags:
                add_tags(target / CARD_FILE, [tags] if isinstance(tags, str) else tags)
            check_nothing_private(target.iterdir())
            return HfApi().upload_folder(repo_id=str(self.hub_model_id), folder_path=scratch, **options)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The adapter's card, as `Trainer.create_model_card`, whose own would take its place."""
        if self.is_world_process_zero():
            folder = str(self.args.output_dir)
            config = self.tuner.active_config  # type: ignore[attr-defined]
            write_run_card(folder, run_facts(folder, config, self.hub_model_id, kwargs.get("license")))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or str(self.args.output_dir))
        # a pickle that nothing reads, and that holds the token
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        if self.identity is not None:
            self.identity.save(folder)
