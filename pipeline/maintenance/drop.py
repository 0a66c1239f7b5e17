"""Drop: removes a feature that was added to an OUT."""

from dataclasses import replace

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.storage import readable
from transforms.store.output import Output
from transforms.text import did_you_mean


def drop_feature(output: str, name: str) -> str:
    """Removes an added feature, and nothing else. Cut off, the same command again finishes it.

    Returns:
        A line that says what was done.

    Raises:
        FeaturemillError: OUT has no such added feature, somebody reads it, or it can't be removed.
    """
    with Output(output).locked() as out:
        added = out.manifest.added_features
        if name in [feature.name for feature in out.manifest.spec.features]:
            raise FeaturemillError(
                f"{out}: {name} is in the parts themselves, and only an added feature can be dropped; leave it, or "
                "extract the others to another folder"
            )
        if name not in added:
            raise FeaturemillError(f"{out} has no added feature {name!r}{did_you_mean(name, added)}")
        side = out.added_feature(name)
        with side.locked(), side.writing(what="remove files from"), side.removing_parts():
            side.clear()
        storage.remove_tree(side.folder, lambda name: False)
        with out.writing():
            storage.make_folder(out.path("_tmp"))
            out.write_manifest(replace(out.manifest, added_features=[each for each in added if each != name]))
    return f"{readable(out.folder)}: {name} is dropped; the rows and their other features are what they were"
