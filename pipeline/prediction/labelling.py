"""Labels tables of features batch by batch, writes PRED's parts, and counts the labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.prediction.options import PredictOptions
from pipeline.training.errors import JudgedRows
from transforms.errors import FeaturemillError
from transforms.evaluation.abstaining import selective
from transforms.evaluation.intervals import Units, share
from transforms.evaluation.metrics import RowScores, judge, score_rows
from transforms.evaluation.split import tied
from transforms.parquet.beside import InOrder
from transforms.predictors.predictions import (
    PredictionWriter,
    Predictor,
    prediction_rows,
    predictions_schema,
    true_codes,
)
from transforms.rows.lookup import fact_batches
from transforms.rows.table import Table
from transforms.store.predictions import Predictions
from transforms.text import clean, counted, did_you_mean, short

# N×C numbers of a batch, of which there are some copies as float64 while it is ranked.
_BATCH_NUMBERS = 2_000_000
_PLACES = ("source", "position")


@dataclass
class Tally:
    """Counts of what was predicted.

    Attributes:
        counts: C int64: answered rows by predicted class.
        rows: All rows, answered or not.
        abstained: Rows without an answer.
        far: Rows far from what the head was trained on, where that is measured.
        known: Answered rows whose true label is a class of the head.
        agreed: Those of them that were predicted so.
        no_class: Rows whose true label is none of the head's classes.
        seals: {path in PRED: seal} of the parts that were written.
        judged: (scores, codes n, keys n, groups n, numbers n) of the known rows of each batch, if they are to be
            judged; numbers are over the rows of all tables.
    """

    counts: np.ndarray
    rows: int = 0
    abstained: int = 0
    far: int = 0
    known: int = 0
    agreed: int = 0
    no_class: int = 0
    seals: dict[str, str] = field(default_factory=dict)
    judged: "list[tuple[RowScores, np.ndarray, pa.Array, np.ndarray, np.ndarray]]" = field(default_factory=list)

    def add(
        self,
        probabilities: np.ndarray,
        rows: pa.RecordBatch,
        codes: np.ndarray,
        groups: np.ndarray | None,
        numbers: np.ndarray,
    ) -> None:
        """Counts a batch; keeps what judging it takes where its n group numbers are given."""
        known, answered = codes >= 0, rows.column("label").is_valid().to_numpy(zero_copy_only=False)
        self.counts += np.bincount(probabilities.argmax(axis=1)[answered], minlength=len(self.counts))
        self.rows += len(codes)
        self.far += rows.column("far").true_count if "far" in rows.schema.names else 0
        self.abstained += int((~answered).sum())
        self.known += int((known & answered).sum())
        self.agreed += rows.column("agrees").true_count
        self.no_class += int((~known).sum()) - rows.column("true_label").null_count
        if groups is not None:
            keys = rows.column("key").filter(pa.array(known))
            scores = score_rows(probabilities[known], codes[known], keys=keys)
            self.judged.append((scores, codes[known], keys, groups[known], numbers[known]))

    def predicted_labels(self, predictor: Predictor) -> dict[str, int]:
        """Returns {class: rows}, the commonest first, without classes that no row has."""
        order = np.argsort(-self.counts, kind="stable")
        return {predictor.unique_labels[i]: int(self.counts[i]) for i in order if self.counts[i]}

    def true_labels(self) -> dict[str, Any]:
        """Returns how the predictions compare with the true labels, as far as these are known."""
        accuracy = self.agreed / self.known if self.known else None
        return {"known": self.known, "agreed": self.agreed, "accuracy": accuracy, "no_class": self.no_class}

    def judge(
        self, predictor: Predictor, tables: "Sequence[Table]", seen: np.ndarray | None
    ) -> "tuple[dict[str, Any], JudgedRows]":
        """Returns the metrics of the kept rows, as `transforms.evaluation.metrics.judge` does, and these rows.

        Args:
            predictor: Whose classes they are.
            tables: What was predicted.
            seen: Booleans for the rows of all tables: which trained the head or chose its settings; None if that isn't
                known. Where there are others, too, these alone are judged, and `seen` in the metrics says how the head
                is on the rest.
        """
        scores, codes, keys, groups, numbers = zip(*self.judged, strict=True)
        rows = JudgedRows(
            tables,
            np.concatenate(numbers),
            RowScores(*map(np.concatenate, zip(*scores, strict=True))),
            np.concatenate(codes).astype(np.int32),
            np.concatenate(groups),
        )
        keys, details = pa.chunked_array(keys), {}
        if seen is not None and seen[rows.numbers].any():
            of_seen = seen[rows.numbers]
            right = (rows.scores.predicted == rows.codes)[of_seen]
            accuracy = share(right, Units.of(len(right), rows.groups[of_seen]))
            details = {"seen": {"rows": len(right), "accuracy": accuracy, "apart": not of_seen.all()}}
            if not of_seen.all():
                keys, rows = keys.filter(pa.array(~of_seen)), rows.only(~of_seen)
        metrics = judge(
            rows.scores, rows.codes, predictor.unique_labels, keys=keys, groups=rows.groups, seed=0, judged_on="inputs"
        )
        if predictor.threshold:
            right = rows.scores.predicted == rows.codes
            details["abstaining"] = selective(rows.scores.top, right, rows.groups, predictor.threshold)
        return {**metrics, **details}, rows


def kept_together(tables: "Sequence[Table]") -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns {column that came along: name of its type} of all tables, and notes about those left out."""
    found: dict[str, dict[tuple[str, str], None]] = {}
    for table in tables:
        for name, kind in table.kept.items():
            found.setdefault(name.lower(), {})[name, kind] = None
    kept = dict(next(iter(pairs)) for pairs in found.values() if len(pairs) == 1)
    differing = [", ".join(f"{name}:{kind}" for name, kind in pairs) for pairs in found.values() if len(pairs) > 1]
    return kept, tuple(f"{each}: of several types, and so not in the predictions" for each in differing)


def predict_tables(
    tables: "Sequence[Table]",
    predictor: Predictor,
    output: Predictions,
    *,
    kept: Mapping[str, str],
    options: PredictOptions,
    limit: int | None,
) -> Tally:
    """Predicts the rows of tables and writes them to PRED.

    Args:
        tables: Features, which fit the predictor.
        predictor: Gives the labels.
        output: PRED, begun.
        kept: {column that comes along: name of its type}.
        options: Top, probabilities, and whether to judge.
        limit: Only so many rows of each table.

    Raises:
        FeaturemillError: Vectors that can't be used, or PRED that can't be written.
    """
    tally = Tally(np.zeros(len(predictor.labels), np.int64))
    schema = predictions_schema(predictor, probabilities=options.probabilities, kept=kept)
    writer = PredictionWriter(output, schema)
    top = min(options.top, len(predictor.labels))
    batch_rows = max(1, _BATCH_NUMBERS // len(predictor.labels))
    groups, before = tied(tables) if options.evaluate and tables else None, 0
    for table in tables:
        columns, along = {"key": table.keys, "true_label": table.labels}, _along(table, kept, schema)
        wanted = None if limit is None else np.arange(table.vectors.rows) < limit
        for numbers, vectors in table.vectors.batches(wanted, batch_rows=batch_rows):
            # In the order of the rows: a batch is a slice, and a slice copies nothing.
            start = int(numbers[0])
            facts = {name: column.slice(start, len(numbers)).combine_chunks() for name, column in columns.items()}
            facts |= along(len(numbers))
            probabilities = predictor.probabilities(vectors)
            if predictor.far:
                facts["distance"] = pa.array(predictor.far.distances(vectors))
            rows = prediction_rows(predictor, probabilities, facts, top=top, schema=schema)
            writer.add(rows)
            of_rows = None if groups is None else groups[before + numbers]
            tally.add(probabilities, rows, true_codes(facts["true_label"], predictor), of_rows, before + numbers)
        before += table.vectors.rows
    writer.close()
    tally.seals = writer.seals
    return tally


def _along(table: "Table", kept: Mapping[str, str], schema: pa.Schema) -> Callable[[int], dict[str, pa.Array]]:
    """Returns what gives the next rows' places and columns that came along, as PRED calls them; null if not known."""
    # They are its last.
    names = dict(zip(kept, schema.names[len(schema) - len(kept) :], strict=True)) | {n: n for n in _PLACES}
    known = [*_PLACES, *table.kept] if table.is_output else []
    there = pa.schema([(name, schema.field(shown).type) for name, shown in names.items() if name in known])
    changed = FeaturemillError(f"{table.location} was changed while it was in use; run the command again")
    rows = InOrder(fact_batches(table, there), changed)

    def take(count: int) -> dict[str, pa.Array]:
        found = {names[name]: pa.nulls(count, schema.field(names[name]).type) for name in names}
        if there.names:
            batch = rows.take(count)
            found |= {names[name]: batch.column(name).combine_chunks() for name in there.names}
        return found

    return take


def check_true_labels(tables: "Sequence[Table]", predictor: Predictor) -> None:
    """Checks that there is something to judge by, before anything is predicted.

    Raises:
        FeaturemillError: No true label at all, or one that is no class of the head.
    """
    known = 0
    for table in tables:
        labels = table.labels.combine_chunks()
        codes = true_codes(labels, predictor)
        known += int((codes >= 0).sum())
        strange = np.flatnonzero((codes < 0) & labels.is_valid().to_numpy(zero_copy_only=False))
        if len(strange):
            label, key = labels[int(strange[0])].as_py(), table.keys[int(strange[0])].as_py()
            raise FeaturemillError(
                f"{counted(len(strange), 'row')} with a true label that is no class of {predictor.name}, the first is "
                f"{short(label)!r} of {clean(key)}{did_you_mean(label, predictor.labels[:20])}; "
                "fix them with --labels, or leave out --evaluate"
            )
    if not known:
        raise FeaturemillError("no row has a true label to evaluate by; pass --labels, or leave out --evaluate")
