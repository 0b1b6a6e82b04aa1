import pytest

from benchmarks import onnx_minilm

pytest.importorskip("onnxruntime")


def test_the_table_has_a_line_for_each_file_and_judges_one_thread():
    seconds = {"dense": 0.3, "converted": 0.2, "dense int8": 0.15, "converted int8": 0.1}
    seconds |= {"torch dense": 0.6, "torch converted": 0.4}
    times = [
        {"texts": 32, "tokens": 32, "threads": threads, "median_s": seconds, "speedup": 1.5, "bar": bar}
        for threads, bar in ((1, 1.4), (2, None))
    ]
    quality = dict.fromkeys(onnx_minilm.KINDS, 0.8321)
    document = {
        "bytes": dict.fromkeys(onnx_minilm.KINDS, 16200000),
        "quality": quality,
        "export_s": dict.fromkeys(onnx_minilm.KINDS, 12.0),
        "times": times,
    }
    lines = onnx_minilm.table(document).splitlines()
    assert lines[0].endswith("| 32 × 32, 1 thread | 32 × 32, 2 threads |")
    assert lines[5] == "| converted int8 | 16.2 | 83.21 | 100.0 ms, 3.00× | 100.0 ms, 3.00× |"
    assert lines[6].startswith("| torch dense |  |  | 600.0 ms, 0.50× |")
    assert sum("bar 1.4×, met" in line for line in lines) == 1


def test_pairs_are_the_rows_with_a_similarity(tmp_path):
    (tmp_path / "dev.csv").write_text('sentence1,sentence2,score\n"One, two.",Three.,4.5\nA,B,x\nC,D\n')
    assert onnx_minilm._pairs(tmp_path / "dev.csv") == [("One, two.", "Three.", 4.5)]


def test_sides_take_turns(monkeypatch):
    monkeypatch.setattr(onnx_minilm, "SAMPLE_SECONDS", 0.0)
    called = []
    taken = onnx_minilm._alternate({name: lambda name=name: called.append(name) for name in "ab"}, 3)
    assert called[-6:] == ["a", "b"] * 3
    assert [len(times) for times in taken.values()] == [3, 3]
