"""Find models in hub format: in a local folder, or in the hub's cache on this machine.

Nothing is downloaded here, so that a stage gives the same result with and without a network; users
download the models that they choose. The environment variable HF_HOME sets the cache's folder.
"""

from pathlib import Path


def find_hub_file(reference: str, name: str, key: str) -> Path:
    """Return the path of file `name` of a model; the model's other files are beside it.

    Args:
        reference: a folder, or a name on the hub: owner/model or owner/model@commit.
        name: a file of the model, such as config.json.
        key: the param that holds the reference, for the error message.

    Raises:
        FileNotFoundError: the file is neither in that folder nor in the cache.
    """
    folder = Path(reference)
    if folder.is_dir():
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"params.yaml: {key}: the folder {folder.absolute()} has no {name}; it must hold"
                " a model in hub format"
            )
        return folder / name
    from transformers.utils import cached_file  # imported here because it takes seconds

    model, _, commit = reference.partition("@")
    try:
        return Path(cached_file(model, name, revision=commit or None, local_files_only=True))
    except OSError as error:
        revision = f" --revision {commit}" if commit else ""
        raise FileNotFoundError(
            f"params.yaml: {key}: '{reference}' is not a folder, and the hub's cache has no"
            f" {name} of it; run `hf download {model}{revision}` with a network, or copy the"
            " model's folder here and set its path"
        ) from error
