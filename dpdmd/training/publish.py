"""Upload a run's student to the Hub when training has ended (`--push_to_hub`)."""

from pathlib import Path

from dpdmd.models.registry import LAYOUTS
from dpdmd.report.card_facts import CARD, training_of
from dpdmd.report.model_card import rename, write_card
from dpdmd.training import checkpoint
from dpdmd.training.preflight import RunSetup
from dpdmd.utils.folders import creating_folder, delete_tree, link_or_copy
from dpdmd.utils.hub_upload import retry_command, upload


def publish(setup: RunSetup) -> str:
    """Upload the last student, and return its address.

    Raises:
        OSError: the upload failed, or RUN/hub cannot be written; the run itself is complete.
    """
    folder, repository = _write_folder(setup)
    return upload(
        folder, repository, private=setup.config.run.private, message="Student of a training run", on_name=rename
    )


def upload_command(setup: RunSetup) -> str:
    """Return a command that uploads the last student.

    Raises:
        OSError: RUN/hub cannot be written.
    """
    folder, repository = _write_folder(setup)
    return retry_command(folder, repository, private=setup.config.run.private)


def _write_folder(setup: RunSetup) -> tuple[Path, str]:
    """Write RUN/hub, the last student with its scores and images in the card; return it, and the repository's name."""
    folder, last = setup.folder.hub, setup.folder.latest()
    if last is None:  # the steps were all trained in the other run that this one continues
        raise FileNotFoundError(f"{setup.folder.ckpts} has no checkpoint to upload")
    repository = setup.config.run.hub_model_id or setup.folder.root.absolute().name
    student = checkpoint.student_folder(last, setup.config)
    delete_tree(folder)
    with creating_folder(folder) as new:
        _link_files(student.resolve(), new)
        defaults = LAYOUTS[setup.config.model.family].defaults
        card = checkpoint.student_card(repository, setup.config, defaults, training_of(student))
        write_card(new, card, images=True)
    return folder, repository


def _link_files(source: Path, target: Path) -> None:
    """Create a folder of links to the files of `source`, without its card; the Hub's client does not enter links."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_dir():
            _link_files(path.resolve(), target / path.name)
        elif path.name != CARD:
            link_or_copy(path.resolve(), target / path.name)
