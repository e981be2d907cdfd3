# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Publish an adapter together with its model card.

`PeftModel.push_to_hub` comes from transformers, which writes a template card over whatever was saved, unless the
repository has a card already. PEFT offers no hook for this to tuners or configs, hence a separate function.
"""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard
from peft import PeftModel
from peft.utils import CONFIG_NAME

from ..inspect.readouts import gates
from .card import hub_id, last_part, model_card, write_card


def push_to_hub(
    model: PeftModel,
    repo_id: str,
    *,
    card: ModelCard | None = None,
    adapter_name: str | None = None,
    files: Sequence[str | os.PathLike[str]] = (),
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload gated prompts",
) -> CommitInfo:
    """Upload one adapter and its card to the root of a Hub repository, in one commit.

    A base that was loaded from a local folder is recorded by the folder's name, not by its path.

    Args:
        model: the model with the adapter.
        repo_id: `user/name`, or `name` under the user who is logged in. It is created if it does not exist.
        card: the card. None means `model_card(model)` without metrics.
        adapter_name: which adapter. None means the active one.
        files: more files to put beside the adapter, such as the card's picture.
        private: whether a new repository is private. None means the account's default.
        token: access token. None means the one of `hf auth login`.
        commit_message: first line of the commit.

    Returns:
        The commit, with its address.

    Raises:
        GatedPromptError: the model has no such adapter. Nothing has been uploaded then.
        HfHubHTTPError: the Hub refused.

    Example:
        ```python
        card = gated_prompt.model_card(model, repo_id="me/birds", labels=["wren", "robin"])
        gated_prompt.push_to_hub(model, "me/birds", card=card)
        ```
    """
    gates(model, adapter_name)  # refuses an unknown adapter, before anything is made
    api = HfApi(token=token)
    name = adapter_name or model.active_adapter
    with tempfile.TemporaryDirectory() as root:
        model.save_pretrained(root, selected_adapters=[name])
        folder = Path(root) if name == "default" else Path(root, name)  # as PEFT does
        for file in files:
            shutil.copy(file, folder)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id  # now with the user's name
        card = card or model_card(model, adapter_name=adapter_name, repo_id=repo)
        if not isinstance(card.data.get("base_model"), str):
            warnings.warn(
                "the card names no base on the Hub, so nobody else can load this adapter. Pass a card made with "
                "model_card(..., base_model='user/name').",
                stacklevel=2,
            )
        write_card(folder, card)
        _name_base(folder / CONFIG_NAME, card)
        return api.upload_folder(repo_id=repo, folder_path=folder, commit_message=commit_message)


def _name_base(path: Path, card: ModelCard) -> None:
    """Let the config name the same base as the card: a path of this machine means nothing elsewhere."""
    config = json.loads(path.read_text())
    source, base = config["base_model_name_or_path"], card.data.get("base_model")
    if isinstance(base, str):
        config["base_model_name_or_path"] = base
    elif source is not None and hub_id(source) is None:
        config["base_model_name_or_path"] = last_part(source)
    path.write_text(json.dumps(config, indent=2, sort_keys=True))
