"""Find models in hub format: in a local folder, or in the hub's cache on this machine.

Nothing is downloaded here: a stage gives the same result with and without a network, and a
download belongs to the person who chose the model. The cache's place is the hub's own environment
variable HF_HOME.
"""

from pathlib import Path


def find_hub_file(reference: str, name: str, key: str) -> Path:
    """Return the path of file `name` of a model; its folder holds the model's other files.

    Args:
        reference: a folder, or owner/model as on the hub, at a commit if "@commit" follows.
        name: a file that the model must have, such as config.json.
        key: the param that holds the reference, for the error.

    Raises:
        FileNotFoundError: it is neither in such a folder nor in the cache.
    """
    folder = Path(reference)
    if folder.is_dir():
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"params.yaml: {key}: the folder {folder.absolute()} has no {name}; it must hold"
                " a model as the hub has it"
            )
        return folder / name
    from transformers.utils import cached_file  # imported when needed: it takes seconds

    model, _, commit = reference.partition("@")
    try:
        return Path(cached_file(model, name, revision=commit or None, local_files_only=True))
    except OSError as error:
        revision = f" --revision {commit}" if commit else ""
        raise FileNotFoundError(
            f"params.yaml: {key}: '{reference}' is no folder here, and the hub's cache has no"
            f" {name} of it. Where there is a network, run `hf download {model}{revision}`, or copy"
            " the model's folder here and set its path"
        ) from error
