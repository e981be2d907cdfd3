# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Whether a backbone can be loaded: checked once, since transformers asks for each file six times."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from transformers import CONFIG_MAPPING, PretrainedConfig

from .. import heads
from ..errors import GatedPromptError

SECONDS = 10  # for the Hub to answer


def check_backbone(backbone: str) -> None:
    """Look for a folder, then in the cache, then on the Hub.

    Raises:
        GatedPromptError: it is in none of them, or the Hub cannot be reached.
    """
    if Path(backbone).is_dir():
        return
    try:
        if isinstance(try_to_load_from_cache(backbone, "config.json"), str):
            return
        HfApi().model_info(backbone, timeout=SECONDS)
    except HFValidationError as error:
        raise _refusal(backbone, "there is no such folder, and no Hub id looks like that") from error
    except RepositoryNotFoundError as error:
        raise _refusal(backbone, "there is no such folder, and no such model on the Hub for you") from error
    except HfHubHTTPError:
        return  # the Hub is there and has a fault of its own. transformers tries again, and says what it meets
    except Exception as error:  # of the HTTP client, which is not the same in all versions of huggingface_hub
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _refusal(backbone, f"there is no such folder, it is not in the cache, and the Hub: {why}") from error


def check_code(backbone: str, trust_remote_code: bool) -> None:
    """Refuse a backbone that cannot be loaded without Python code of its own, unless that is trusted. None is run.

    Raises:
        GatedPromptError: it brings code, or its config cannot be read.
    """
    try:
        values, _ = PretrainedConfig.get_config_dict(backbone)
    except (OSError, ValueError) as error:
        raise _refusal(backbone, str(error).splitlines()[0]) from error
    if "auto_map" in values and values.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        raise GatedPromptError(
            f"the backbone {backbone!r} brings Python code of its own, which is not run; read it, and give "
            "--trust_remote_code true if you trust it, or take another backbone"
        )


def load_backbone(backbone: str, trust_remote_code: bool = False, **settings: Any) -> Any:
    """`heads.load_backbone`, after `check_backbone` and `check_code`.

    Raises:
        GatedPromptError: it cannot be loaded.
    """
    check_backbone(backbone)
    check_code(backbone, trust_remote_code)
    return heads.load_backbone(backbone, trust_remote_code, **settings)


def _refusal(backbone: str, why: str) -> GatedPromptError:
    return GatedPromptError(
        f"cannot load --backbone {backbone!r}; give a folder with a model or a Hub id that can be reached ({why})"
    )
