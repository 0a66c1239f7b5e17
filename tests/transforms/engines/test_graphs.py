"""How a GPU computes a graph: what is chosen by what was measured, what is kept, and the engine that goes by it."""

import logging

import numpy as np
import pytest

from pipeline.cli.options import options_of
from tests.transforms.engines.test_keras import make_engine, make_pixels, make_spec
from transforms.embedding.settings import EmbedOptions
from transforms.engines import backends, gpu_notes, graphs, load_engine
from transforms.engines import keras as keras_engine
from transforms.engines.backends import Gpu
from transforms.engines.graphs import Graph, Speed, fastest_graph, keep_graph, kept_graph
from transforms.engines.keras import KerasEngine

CARD = "GPU (Test card)"


def card(rates, first_seconds=0.0, tried=None):
    """What measures a card of {batch size: images/s}; larger batches don't fit; compiled ones are twice as fast."""

    def measure(graph):
        if tried is not None:
            tried.append(graph)
        rate = rates.get(graph.batch_size, 0.0)
        return Speed(first_seconds, 2 * rate) if graph.compiled else Speed(0.0, rate)

    return measure


@pytest.mark.parametrize(
    ("rates", "size"),
    [
        ({64: 1000, 128: 1040, 256: 2000}, 64),
        ({64: 1000, 128: 1060, 256: 1090}, 128),
        ({64: 100, 128: 200, 256: 400, 512: 800, 1024: 1600, 2048: 3200}, 1024),
        ({64: 1000}, 64),
        ({8: 90, 16: 100}, 16),
        ({}, 1),
    ],
)
def test_batches_grow_while_that_gains_and_fits(rates, size):
    assert fastest_graph(card(rates), compiled=[False]) == (Graph(False, size), size >= 64)


def test_a_size_that_was_asked_for_stays():
    tried = []
    assert fastest_graph(card({3: 10}, tried=tried), compiled=[False, True], batch_size=3) == (Graph(True, 3), True)
    assert tried == [Graph(False, 3), Graph(True, 3)]


@pytest.mark.parametrize(("first_seconds", "compiled"), [(49, True), (51, False)])
def test_compiling_must_pay_for_itself(first_seconds, compiled):
    """100,000 images at 1,000 a second take 100 s, at 2,000 take 50."""
    found = fastest_graph(card({64: 1000}, first_seconds), compiled=[False, True])
    assert found == (Graph(compiled, 64), True)


def test_what_cannot_be_compiled_is_not():
    def measure(graph):
        return Speed(0.0, 0.0 if graph.compiled else 10.0)

    assert fastest_graph(measure, compiled=[False, True], batch_size=2) == (Graph(False, 2), True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATUREMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_kept_by_all_facts_and_measured_again_where_damaged(cache):
    keep_graph(Graph(True, 128), "card", "versions")
    assert kept_graph("card", "versions") == Graph(True, 128)
    assert kept_graph("card", "other versions") is None
    [file] = cache.iterdir()
    for damaged in ("", "{", "[]", "{}", '{"compiled": true}', '{"compiled": 1, "batch_size": 0}', '"x"'):
        file.write_text(damaged)
        assert kept_graph("card", "versions") is None, damaged
    keep_graph(Graph(False, 1), "card", "versions")
    assert kept_graph("card", "versions") == Graph(False, 1)


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEATUREMILL_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        keep_graph(Graph(True, 1), "card")
    assert "measured in each process; set FEATUREMILL_CACHE" in caplog.text


@pytest.fixture
def on_card(cache, monkeypatch):
    """The CPU, called a card: everything is computed for real, and XLA compiles for CPUs too."""
    real = backends.load_backend()
    monkeypatch.setattr(real, "gpus", lambda: [Gpu("Test card", (9, 0))])
    monkeypatch.setattr(keras_engine, "load_backend", lambda: real)
    monkeypatch.setattr(keras_engine, "_MEASURED_SECONDS", 0.01)
    monkeypatch.setattr("transforms.engines.device", lambda engine: CARD)
    for name, value in {"_FIRST": 2, "_LAST": 4}.items():
        monkeypatch.setattr(graphs, name, value)
    return real


def test_an_engine_measures_once_and_computes_the_same(on_card, cache, monkeypatch):
    features, pixels = ["a=block2_pool:avg", "b=block3_pool:max"], make_pixels(2, 32)
    tried, measure = [], KerasEngine._measure

    def noted(self, graph):
        tried.append(graph)
        return measure(self, graph)

    monkeypatch.setattr(KerasEngine, "_measure", noted)
    engine = make_engine(features, batch_size=None)
    assert tried[0] == Graph(False, 2)
    assert tried[-1].compiled
    [file] = cache.glob("graph-*.json")
    graph = kept_graph(*keras_engine._graph_facts(engine._spec, None))
    assert (engine._compiled, engine.batch_size) == (graph.compiled, graph.batch_size)
    assert f"{CARD}, {'' if graph.compiled else 'not '}compiled, " in engine.description
    spec, found, count = engine._spec, engine.embed(pixels), len(tried)
    [note] = [note for note in gpu_notes("keras", spec, None) if "graph" in note]
    assert note == f"how the graph is computed: {graph}, as was measured on this card"
    # Another process would find what is kept; this one has the engine no longer.
    del engine
    keep_graph(Graph(True, 3), *keras_engine._graph_facts(spec, None))
    other = make_engine(features, batch_size=None)
    assert len(tried) == count
    assert (other._compiled, other.batch_size) == (True, 3)
    for name, values in other.embed(pixels).items():
        np.testing.assert_allclose(values, found[name], rtol=1e-5, atol=1e-5 * np.abs(found[name]).max())
    assert make_engine(features, batch_size=None) is other
    file.unlink()
    assert [note for note in gpu_notes("keras", spec, None) if "measured on this card now" in note]


def test_what_a_full_card_allows_is_not_kept(on_card, cache, monkeypatch):
    monkeypatch.setattr(KerasEngine, "_measure", lambda self, graph: Speed(0.0, 5.0 if graph.batch_size == 1 else 0.0))
    engine = make_engine(["a=block1_pool:avg"], batch_size=None, source="random:8")
    assert engine.batch_size == 1
    assert not list(cache.glob("graph-*"))


def test_a_compiler_that_fails_costs_a_run_nothing(on_card, monkeypatch):
    real = keras_engine._graph

    def graph(network, spec, batch_size, *, compiled):
        if compiled:
            raise RuntimeError("no C compiler")
        return real(network, spec, batch_size, compiled=compiled)

    monkeypatch.setattr(keras_engine, "_graph", graph)
    engine = make_engine(["a=block1_pool:avg"], batch_size=1, source="random:5")
    assert not engine._compiled
    monkeypatch.setattr(on_card, "compiled", (True,))
    with pytest.raises(RuntimeError, match="no C compiler"):
        make_engine(["a=block1_pool:avg"], batch_size=1, source="random:6")


def test_on_a_cpu_nothing_is_measured(cache):
    spec = make_spec(["a=block1_pool:avg"], source="random:7")
    engine = load_engine("keras", spec, "random:7", include_top=False, batch_size=None, threads=None)
    assert engine.batch_size == 8
    assert "compiled" not in engine.description
    assert not list(cache.glob("graph-*"))


def test_auto_is_the_default():
    [option] = [each for each in options_of(EmbedOptions) if each.name == "batch_size"]
    assert [option.type.convert(text, option, None) for text in ("auto", "3")] == [EmbedOptions().batch_size, 3]
