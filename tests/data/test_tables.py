import importlib.util
import json

import pytest

from milkweed.data.tables import ColumnError, check_rows, iterate_rows, read_tables

FIELDS = ("sentence", "label")
ROWS = [{"sentence": 'He said "no", twice.', "label": "1"}, {"sentence": "Two\u2028lines", "label": "0"}]


def read_rows(file, fields):
    return list(iterate_rows(file, fields))


def test_csv_with_and_without_a_header(tmp_path):
    quoted = '"He said ""no"", twice.",1\nTwo\u2028lines,0\n'
    (tmp_path / "a.csv").write_text("sentence,label\n" + quoted, encoding="utf-8-sig")
    (tmp_path / "b.csv").write_text(quoted)
    assert read_rows(tmp_path / "a.csv", FIELDS) == ROWS
    assert read_rows(tmp_path / "b.csv", FIELDS) == ROWS


def test_further_columns_need_a_header(tmp_path):
    (tmp_path / "a.csv").write_text("idx,label,sentence\n7,1,Yes\n")
    assert read_rows(tmp_path / "a.csv", FIELDS) == [{"idx": "7", "label": "1", "sentence": "Yes"}]
    (tmp_path / "a.csv").write_text("7,1,Yes\n")
    with pytest.raises(ValueError, match=r"a\.csv lacks label, sentence: its first row is 7, 1, Yes; write a header"):
        read_rows(tmp_path / "a.csv", FIELDS)
    (tmp_path / "a.csv").write_text("text,label\nYes,1\n")
    with pytest.raises(ValueError, match="lacks sentence: its first row is text, label"):
        read_rows(tmp_path / "a.csv", FIELDS)


def test_quotes_in_tsv_mean_themselves(tmp_path):
    (tmp_path / "a.tsv").write_text('sentence\tlabel\nHe said "no\t1\n')
    assert read_rows(tmp_path / "a.tsv", FIELDS) == [{"sentence": 'He said "no', "label": "1"}]


def test_json_and_its_lines(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    assert read_rows(tmp_path / "a.json", FIELDS) == read_rows(tmp_path / "a.jsonl", FIELDS) == ROWS


def test_splits_are_named_by_their_files(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "dev", "validation_matched"):
        (tmp_path / f"{name}.csv").write_text(f"sentence,label\n{name},1\n")
    tables = read_tables(str(tmp_path), FIELDS)
    assert {split: [row["sentence"] for row in rows] for split, rows in tables.items()} == {
        "train": ["train-00000-of-00002", "train-00001-of-00002"],
        "validation": ["dev"],
        "validation_matched": ["validation_matched"],
    }
    assert set(read_tables(str(tmp_path / "dev.csv"), FIELDS)) == {"train"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"\xff\xfe", "not UTF-8"),
        ("a.csv", b"sentence,label\nYes,1\nNo\n", "row 2 has 1 columns, expected 2"),
        ("a.csv", b"sentence,label\n" + b"x" * 200_000 + b",1\n", "cannot be read as a table: field larger.*as .jsonl"),
        ("a.json", b"[1", "is not JSON"),
        ("a.jsonl", b"[1]\n", "must hold objects with the keys sentence, label"),
        ("a.json", b"null", r"a\.json must hold a list of objects, .*; it holds None"),
        ("a.json", b'{"sentence": "a", "label": 1}', "must hold a list of objects"),
        ("a.json", b'{"sentence": "a"}\n{"sentence": "b"}\n', "name it .jsonl if every line is an object"),
        (
            "a.jsonl",
            b'{"sentence": "a", "label": 1}\n\n{"sent\n',
            r"a\.jsonl, line 3 is not JSON: .* at column 7; mend or",
        ),
        ("a.jsonl", b'{"sentence": "a"}\n', r"a\.jsonl: row 1 lacks label; it has sentence"),
        ("a.jsonl", b'{"sentence": "a", "label": null}\n', r"a\.jsonl: row 1 has label=null; fill it, or drop the row"),
        ("a.txt", b"", r"a\.txt must end in one of \.csv"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_tables(str(tmp_path / name), FIELDS)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r\n\r\n", "\n \t\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_blank_lines_and_byte_order_marks_are_no_content(tmp_path, end, mark):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    (tmp_path / "a.jsonl").write_bytes((mark + end.join([*lines, ""])).encode())
    assert read_rows(tmp_path / "a.jsonl", FIELDS) == ROWS


def test_files_are_named_by_what_is_wrong_in_them(tmp_path):
    for number, label in enumerate(("1", 2)):
        (tmp_path / f"train-{number}.jsonl").write_text(json.dumps({"sentence": "a", "label": label}))
    assert len(read_tables(str(tmp_path), FIELDS)["train"]) == 2
    with pytest.raises(ColumnError, match=r"train-1\.jsonl: row 1 has label=2; expected text, in quotes"):
        read_tables(str(tmp_path), FIELDS, texts=("label",))


@pytest.mark.parametrize("value", [5, 0.5, True, ["a"], {"a": "b"}])
def test_text_is_text_and_may_be_missing_where_it_is_not_needed(value):
    rows = [{"a": "x", "b": None}, {"a": "y"}]
    assert list(check_rows("here", rows, ("a",), ("a", "b"))) == rows
    with pytest.raises(ColumnError, match=r"here: row 1 has b=.*; expected text") as error:
        list(check_rows("here", [{"a": "x", "b": value}], ("a",), ("a", "b")))
    assert error.value.there == {"a", "b"}


def test_an_empty_file_is_an_empty_split(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"")
    assert read_tables(str(tmp_path / "a.csv"), FIELDS) == {"train": []}


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="datasets is installed")
def test_other_sources_name_the_extra(tmp_path):
    with pytest.raises(ModuleNotFoundError, match=r'holds no file that ends in .csv.*pip install "milkweed\[data\]"'):
        read_tables(str(tmp_path), FIELDS)
    with pytest.raises(ModuleNotFoundError, match=r"nowhere is neither a file nor a folder"):
        read_tables(str(tmp_path / "nowhere"), FIELDS)


@pytest.mark.filterwarnings("ignore")
def test_what_datasets_has_written(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(ROWS)
    rows.to_parquet(str(tmp_path / "parquet" / "train-00000-of-00001.parquet"))
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "val": rows.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert read_tables(str(tmp_path / "parquet"), FIELDS) == {"train": ROWS}
    assert read_tables(str(tmp_path / "one"), FIELDS) == {"train": ROWS}
    assert read_tables(str(tmp_path / "two"), FIELDS) == {"train": ROWS, "validation": ROWS[:1]}
    datasets.Dataset.from_dict({"sentence": ["a", None], "label": [1, 2]}).save_to_disk(str(tmp_path / "null"))
    with pytest.raises(ColumnError, match=r"null, split train: row 2 has sentence=null; fill it, or drop the row"):
        read_tables(str(tmp_path / "null"), FIELDS)
    with pytest.raises(ColumnError, match=r"null, split train: row 1 has label=1; expected text"):
        read_tables(str(tmp_path / "null"), FIELDS, texts=("label",))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="is neither a folder with data nor a data set that can be fetched"):
        read_tables(str(tmp_path / "nothing"), FIELDS)


def written(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("spelled", ["Sentence", " sentence", "SENTENCE ", "\u00a0sentence", "\ufeff\ufeffsentence"])
@pytest.mark.parametrize("further", ["", "idx,"])
def test_a_column_spelled_in_another_way_is_named(tmp_path, spelled, further):
    """Without further columns it would be a row of a table without a header."""
    file = written(tmp_path, "a.csv", f"{further}{spelled},label\nYes,1\n")
    with pytest.raises(ColumnError, match=r"(?i)lacks sentence.*; write '.*sentence ?' as 'sentence'"):
        read_rows(file, FIELDS)
    alone = written(tmp_path, "b.csv", f"{spelled}\nYes\n")
    with pytest.raises(ColumnError, match="as 'sentence'"):
        read_rows(alone, ("sentence",))


def test_a_table_without_header_may_hold_any_text(tmp_path):
    file = written(tmp_path, "a.csv", "A sentence,1\nsentences,0\n")
    assert [row["label"] for row in read_rows(file, FIELDS)] == ["1", "0"]


def test_keys_spelled_in_another_way_are_named(tmp_path):
    file = written(tmp_path, "a.jsonl", '{"Sentence": "a", "label": 1}\n')
    with pytest.raises(ColumnError, match="row 1 lacks sentence; it has Sentence, label; write 'Sentence' as 'sentenc"):
        read_tables(str(file), FIELDS)


@pytest.mark.parametrize("header", ["sentence,label,sentence", "label,sentence,label", "x,sentence,label,x"])
def test_a_doubled_column_is_refused(tmp_path, header):
    file = written(tmp_path, "a.csv", f"{header}\n{','.join('1' * len(header.split(',')))}\n")
    with pytest.raises(ColumnError, match=r"a\.csv has the column '(sentence|label|x)' twice; drop or rename one"):
        read_rows(file, FIELDS)


def test_columns_without_a_name_may_be_several(tmp_path):
    file = written(tmp_path, "a.csv", "sentence,label,,\nYes,1,,\n")
    assert read_rows(file, FIELDS)[0]["sentence"] == "Yes"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"sentence": "a", "label": 1, "sentence": "b"}\n'),
        ("a.json", '[{"sentence": "a", "label": 1, "sentence": "b"}]'),
        ("a.jsonl", '{"sentence": "a", "label": {"sentence": 1, "sentence": 2}}\n'),
    ],
)
def test_a_doubled_key_is_refused(tmp_path, name, text):
    with pytest.raises(ValueError, match=r"a\.jsonl?.*the key 'sentence' is there twice"):
        read_rows(written(tmp_path, name, text), FIELDS)


def test_json_nested_too_deeply_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="line 1 is not JSON: nested too deeply"):
        read_rows(written(tmp_path, "a.jsonl", "[" * 100_000 + "\n"), FIELDS)


@pytest.mark.parametrize("other", ["dev.csv", "val.csv", "validation.jsonl"])
def test_a_split_in_two_forms_is_refused(tmp_path, other):
    for name in ("validation.csv", other):
        written(tmp_path, name, "sentence,label\na,1\n")
    with pytest.raises(ValueError, match=f"has the split validation twice, in {min(other, 'validation.csv')} and "):
        read_tables(str(tmp_path), FIELDS)


def test_suffixes_may_be_in_capitals(tmp_path):
    written(tmp_path, "train.CSV", 'sentence,label\n"a ""b""",1\n')
    written(tmp_path, "test.TSV", 'sentence\tlabel\n"a"\t1\n')
    found = read_tables(str(tmp_path), FIELDS)
    assert found["train"][0]["sentence"] == 'a "b"'
    assert found["test"][0]["sentence"] == '"a"'
    assert read_tables(str(tmp_path / "train.CSV"), FIELDS)["train"] == found["train"]


class TestFoldersForDatasets:
    """Folders that the library datasets reads name no files elsewhere."""

    @pytest.mark.parametrize("name", ["../x.arrow", "/etc/x.arrow"])
    def test_of_a_saved_data_set(self, tmp_path, name):
        from milkweed.data.tables import check_datasets_folder

        (tmp_path / "train").mkdir()
        for folder in (tmp_path, tmp_path / "train"):
            (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
            check_datasets_folder(tmp_path)
            (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
            with pytest.raises(ValueError, match="leaves that folder"):
                check_datasets_folder(tmp_path)
            (folder / "state.json").unlink()
        (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", ".."]}))
        with pytest.raises(ValueError, match="leaves that folder"):
            check_datasets_folder(tmp_path)

    @pytest.mark.parametrize("name", ["../x.csv", "/etc/*.csv", "https://example.org/x.csv", "a/../../x.csv", "~/x"])
    @pytest.mark.parametrize("form", ["data_files: {}", "data_files:\n  - path: '{}'", 'data_files: ["a.csv", "{}"]'])
    def test_of_a_card(self, tmp_path, name, form):
        from milkweed.data.tables import check_datasets_folder

        card = "---\nlicense: mit\nconfigs:\n- config_name: default\n  {}\n---\nSee https://example.org and ../x.\n"
        (tmp_path / "README.md").write_text(card.format(form.format("data/*.parquet")))
        check_datasets_folder(tmp_path)
        (tmp_path / "README.md").write_text(card.format(form.format(name)))
        with pytest.raises(ValueError, match="leaves its folder"):
            check_datasets_folder(tmp_path)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1" + "0" * 5000, "a number has too many digits"),
        (r'"\ud83d"', r"\\ud83d is one half of a character"),
        (r'{"x": ["\uDE00\uD83D"]}', r"\\ude00 is one half of a character"),
    ],
)
def test_values_that_are_no_numbers_and_no_texts_are_refused_by_file(tmp_path, name, value, message):
    row = f'{{"sentence": "a", "label": {value}}}'
    (tmp_path / name).write_text(f"[{row}]" if name == "a.json" else row)
    with pytest.raises(ValueError, match=rf"a\.jsonl?.*{message}"):
        read_rows(tmp_path / name, FIELDS)


def test_escaped_characters_of_two_halves_are_texts(tmp_path):
    (tmp_path / "a.jsonl").write_text(r'{"sentence": "\ud83d\ude00", "label": "\\ud83d"}')
    assert read_rows(tmp_path / "a.jsonl", FIELDS) == [{"sentence": "\U0001f600", "label": r"\ud83d"}]


def test_hidden_files_are_no_splits(tmp_path):
    for name in ("train.csv", "._train.csv", ".train.csv"):
        (tmp_path / name).write_bytes(b"sentence,label\nYes,1\n" if name == "train.csv" else b"\0\xff")
    assert read_tables(str(tmp_path), FIELDS) == {"train": [{"sentence": "Yes", "label": "1"}]}


def test_a_column_with_another_form_of_an_accent_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("the\u0301me,label\nYes,1\n")
    with pytest.raises(ColumnError, match=r"lacks th\u00e9me.*; write 'the\u0301me' as 'th\u00e9me'"):
        list(check_rows("a.csv", iterate_rows(tmp_path / "a.csv", ("th\u00e9me", "label")), ("th\u00e9me", "label")))
