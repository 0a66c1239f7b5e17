"""`tf.train.Example` without TensorFlow: the message is described here and built by the protobuf library.

The descriptor lives in a pool of its own, so it can't clash with TensorFlow's when both are in one process. The wire
format knows only field numbers, which are those of tensorflow/core/example/feature.proto.
"""

import functools
from collections.abc import Iterator, Mapping

import numpy as np

Values = bytes | str | int | float
# A record of more is looked through before it is parsed, and refused if it would take so much more than its own size.
_LARGE_BYTES, _PARSED_BYTES = 16 << 20, 128 << 20
# What a feature takes besides its values, and how many times their size small values do.
_FEATURE_BYTES, _GROWTH = 100, 8
_BYTES_LIST, _FLOAT_LIST, _FEATURE = 1, 2, 2
# Of many numbers, none of which can be a label, so many are handed out.
_VALUES = 1 << 16


@functools.cache
def _example_class() -> type:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="featuremill/example.proto", package="featuremill", syntax="proto3")

    def add(message, name, number, field_type, *, repeated=False, type_name="", oneof=None):
        label = kind.LABEL_REPEATED if repeated else kind.LABEL_OPTIONAL
        field = message.field.add(name=name, number=number, type=field_type, label=label)
        if type_name:
            field.type_name = f".featuremill.{type_name}"
        if oneof is not None:
            field.oneof_index = oneof

    lists = (("BytesList", kind.TYPE_BYTES), ("FloatList", kind.TYPE_FLOAT), ("Int64List", kind.TYPE_INT64))
    for name, field_type in lists:
        add(file.message_type.add(name=name), "value", 1, field_type, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, _) in enumerate(lists, start=1):
        field_name = name.replace("List", "_list").lower()
        add(feature, field_name, number, kind.TYPE_MESSAGE, type_name=name, oneof=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, kind.TYPE_STRING)
    add(entry, "value", 2, kind.TYPE_MESSAGE, type_name="Feature")
    add(features, "feature", 1, kind.TYPE_MESSAGE, repeated=True, type_name="Features.FeatureEntry")
    example = file.message_type.add(name="Example")
    add(example, "features", 1, kind.TYPE_MESSAGE, type_name="Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("featuremill.Example"))


def parse(data: bytes) -> Mapping:
    """Returns the features of a serialised `tf.train.Example`, by name.

    Raises:
        ValueError: The bytes aren't such a message, or one that would take many times its size.
    """
    from google.protobuf.message import DecodeError

    if len(data) > _LARGE_BYTES and _grows(data):
        raise ValueError("the record's features, the image aside, would take too much memory")
    try:
        return _example_class().FromString(data).features.feature
    except DecodeError as error:
        raise ValueError("the record isn't a tf.train.Example") from error


def _grows(data: bytes) -> bool:
    """Returns whether a record holds so many small values or features that parsing it would take far more memory."""
    grown = 0
    for _, features in _parts(memoryview(data)):
        for _, entry in _parts(features):
            kept = 0
            for number, feature in _parts(entry):
                for kind, values in _parts(feature) if number == _FEATURE else ():
                    if kind == _BYTES_LIST:
                        kept += sum(len(value) for _, value in _parts(values))
                    elif kind == _FLOAT_LIST:
                        kept += len(values)
            grown += _FEATURE_BYTES + _GROWTH * (len(entry) - kept)
            if grown > _PARSED_BYTES:
                return True
    return False


def _parts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields (number, content) of a message's fields with a length, up to one of another kind; see the wire format in
    https://protobuf.dev/programming-guides/encoding."""
    at = 0
    while at < len(message) and message[at] & 7 == 2:
        number, at, length, shift = message[at] >> 3, at + 1, 0, 0
        while at < len(message):
            length |= (message[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if message[at - 1] < 0x80 or shift > 63:
                break
        yield number, message[at : at + length]
        at += length


def is_bytes(features: Mapping, name: str) -> bool:
    return name in features and features[name].WhichOneof("kind") == "bytes_list"


def value_of(features: Mapping, name: str) -> "Values | np.float32 | list[Values] | None":
    """Returns the value of a feature, a list if it has several, or None if it is missing or empty."""
    # Asking such a map for a missing name would add it.
    if not name or name not in features:
        return None
    feature = features[name]
    kind = feature.WhichOneof("kind")
    values = getattr(feature, kind).value if kind else ()
    if len(values) > 1:
        return list(values[:_VALUES])
    if not values:
        return None
    # Its numbers have seven digits; Python would show those that float64 adds.
    return np.float32(values[0]) if kind == "float_list" else values[0]


def serialize(values: Mapping[str, Values | list[Values]]) -> bytes:
    """Returns a `tf.train.Example` with a value, or a list of one kind, per feature; text becomes UTF-8.

    Equal input gives equal bytes.
    """
    example = _example_class()()
    for name, given in values.items():
        feature = example.features.feature[name]
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, (bytes, str)):
                feature.bytes_list.value.append(value.encode() if isinstance(value, str) else value)
            elif isinstance(value, int):
                feature.int64_list.value.append(value)
            else:
                feature.float_list.value.append(value)
    return example.SerializeToString(deterministic=True)
