"""What a machine, or a container on it, has to give."""

import psutil

from transforms import machine


def test_a_container_may_have_less_memory_than_its_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    assert 0 < machine.available_memory() <= psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 100000\n")
    assert machine.available_memory() == 400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory() > 2**20
