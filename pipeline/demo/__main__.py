"""The demo: draws a small sample set, extracts it in every format, trains a head, and shows what it gets wrong.

Run as `python -m pipeline.demo FOLDER`, which is what `make demo` does. It calls the command as a user would.
"""

import os
import shlex
import shutil
import subprocess
import sys

from pipeline.demo.samples import draw_items, draw_samples, write_folder

_LOOK = (
    'import duckdb; print(duckdb.sql("SELECT label, count(*) AS images, count(DISTINCT sha256) AS contents, '
    "round(avg(sqrt(list_inner_product(embedding, embedding))), 1) AS mean_norm "
    "FROM '{output}/features/*.parquet' GROUP BY label ORDER BY label\"))"
)
_NEXT = """
Open in a browser
  {folder}/head/report.html
      how good the head is, with intervals
  {folder}/predictions/errors.html
      what it gets wrong on new images; a click on the matrix shows them
  {folder}/suspects.html
      labels that may be wrong: select, correct, save as labels.csv

What to try next
  {command} train {output} --output {folder}/better --labels labels.csv --labels-mode update
      the head again, with the labels that you corrected
  {command} inspect {output}
      the spec, the totals, rows per label, the vectors
  {command} extract {inputs} --output {output} --weights {weights}
      the same again: nothing is done twice
  {command} extract YOUR_PHOTOS --output YOUR_FEATURES --weights {weights}
      your own images, a folder per class
  {command} describe vgg19
      the layers that a feature can tap
"""


def main(folder: str) -> int:
    """Runs the demo in a folder, which is emptied first. Returns the exit code."""
    if os.path.exists(folder) and not os.path.exists(os.path.join(folder, "photos.tar")) and os.listdir(folder):
        print(f"{folder} holds something that isn't the demo's; name another folder", file=sys.stderr)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    inputs = [os.path.relpath(path) for path in draw_samples(folder).values()]
    print(f"Drew 4 classes of shapes and textures, a few files broken on purpose: {', '.join(inputs)}\n")
    output = os.path.join(folder, "out")
    command = os.path.join(os.path.dirname(sys.executable), "featuremill")
    extract = [command, "extract", *inputs, "--output", output]
    weights = "imagenet"
    code = _run(extract)
    if code == 1:
        print(
            "\n*** The ImageNet weights could not be fetched (see above). The demo goes on with random weights: ***\n"
            "*** everything works the same, but these features mean nothing.                                ***\n"
        )
        weights = "random:0"
        code = _run([*extract, "--weights", weights])
    if code:
        return code
    print()
    if code := _run([sys.executable, "-c", _LOOK.format(output=output)]):
        return code
    # Other images of the same classes.
    test = os.path.join(folder, "test")
    write_folder(test, draw_items(per_class=15, size=160, seed=1))
    head, predictions, page = (os.path.join(folder, name) for name in ("head", "predictions", "suspects.html"))
    for arguments in (
        ["train", output, "--output", head],
        ["predict", head, test, "--output", predictions, "--evaluate"],
        ["suspects", output, "--html", page, "--quiet"],
    ):
        print()
        if code := _run([command, *arguments]):
            return code
    shown = {"command": os.path.relpath(command), "output": output, "inputs": " ".join(inputs), "weights": weights}
    print(_NEXT.format(**shown, folder=folder))
    return 0


def _run(command: list[str]) -> int:
    shown = [os.path.relpath(command[0]), *command[1:]]
    print(f"$ {shlex.join(shown)}", flush=True)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "demo"))
