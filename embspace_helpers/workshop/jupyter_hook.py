"""Opening a notebook changes nothing: what JupyterLab writes of its own accord is not saved.

JupyterLab notes in every notebook which Python ran it. Under another one than the stored this
alone would mark the file as changed, for git too. `make lab` starts JupyterLab with

    --ContentsManager.pre_save_hook=embspace_helpers.workshop.jupyter_hook.keep_metadata

so that the stored note is kept.
"""

import json
from pathlib import Path
from typing import Any

KEPT = ("language_info", "kernelspec")


def keep_metadata(model: dict[str, Any], path: str, contents_manager: Any, **_: Any) -> None:
    """Put the stored kernel and language back into a notebook that is about to be saved."""
    if model.get("type") != "notebook" or not isinstance(model.get("content"), dict):
        return
    try:
        file = Path(contents_manager._get_os_path(path))
        stored = json.loads(file.read_text(encoding="utf-8"))["metadata"]
    except (AttributeError, OSError, ValueError, KeyError):
        return  # a new notebook, or one that is no file: nothing was stored
    metadata = model["content"].setdefault("metadata", {})
    metadata.update({key: stored[key] for key in KEPT if key in stored})
