"""The Arrow schemas of parts and of failures."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from transforms.labels.kept import arrow_type
from transforms.spec import FeatureSpec


def part_schema(spec: FeatureSpec, sizes: Mapping[str, int], added: Mapping[str, str]) -> pa.Schema:
    """Returns the Arrow schema of a part: the row's own columns, then one fixed-size list per feature.

    Args:
        spec: Names the features and their dtype.
        sizes: {feature name: D}.
        added: {column: name of its type} of those between the two, see `Manifest.between`.
    """
    number = {"float32": pa.float32(), "float16": pa.float16()}[spec.dtype]
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("source", pa.string(), nullable=False),
            pa.field("position", pa.int64(), nullable=False),
            pa.field("sha256", pa.binary(32), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            *(pa.field(name, arrow_type(kind)) for name, kind in added.items()),
            *(pa.field(f.name, pa.list_(number, sizes[f.name]), nullable=False) for f in spec.features),
        ]
    )


def vector_bytes(schema: pa.Schema, columns: Sequence[str]) -> int:
    """Returns the bytes of a row's vectors, as far as they are in these columns."""
    kinds = [schema.field(name).type for name in columns]
    return sum(k.list_size * k.value_type.bit_width // 8 for k in kinds if pa.types.is_fixed_size_list(k))


def matrix_of(column: pa.FixedSizeListArray) -> np.ndarray:
    """Returns a part's column of N vectors as N×D, in its own dtype."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def failures_schema() -> pa.Schema:
    """Returns the Arrow schema of a failures file, the fields of `Failure`."""
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("source", pa.string(), nullable=False),
            pa.field("position", pa.int64(), nullable=False),
            pa.field("stage", pa.string(), nullable=False),
            pa.field("error", pa.string(), nullable=False),
            pa.field("message", pa.string(), nullable=False),
            pa.field("sha256", pa.binary(32)),
        ]
    )
