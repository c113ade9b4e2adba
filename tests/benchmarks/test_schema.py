"""The published schema is that of the records, and every results file there is satisfies it or can still be read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import jsonschema
import pytest

from benchmarks import schema
from benchmarks.judging.compare import groups
from benchmarks.reporting.columns import COLUMNS, table
from benchmarks.reporting.report import render
from benchmarks.results import SCHEMA, Results, read
from catalog import ROOT, to_json

GOLDEN = Path(__file__).parent / "golden"
FILES = [*sorted((ROOT / "results").glob("*.json")), GOLDEN / "results.json", GOLDEN / "results-2.json"]


def test_the_published_schema_is_the_records_s() -> None:
    """After a change that is meant: `python -m benchmarks schema --out docs/results.schema.json`."""
    assert schema.PATH.read_text(encoding="utf-8") == schema.text()
    jsonschema.Draft202012Validator.check_schema(schema.schema())


def test_it_has_a_name_and_says_what_the_fields_are() -> None:
    told = schema.schema()
    fields = told["$defs"]["Detail"]["properties"]
    assert told["$id"] == f"urn:modelkiln:results:{SCHEMA}"
    assert fields["load_ms"] == {"type": "number"}
    assert fields["overhead_us"]["description"] == "of timing an empty call the same way; not subtracted"
    assert told["$defs"]["Measurement"]["properties"]["images_per_s"]["description"] == "Offline, at `offline_batch`"
    assert told["$defs"]["Results"]["properties"]["roofline"].keys() == {"anyOf"}


def test_what_is_written_satisfies_it(golden: Results) -> None:
    validator = jsonschema.Draft202012Validator(schema.schema())
    data = json.loads(to_json(golden))
    validator.validate(data)
    for wrong in ({**data, "schema": 1}, {**data, "rows": [{}]}, {**data, "extra": 1}, {**data, "threads": "2"}):
        assert not validator.is_valid(wrong)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_version_is_read_and_rendered(path: Path) -> None:
    found = read(path)
    assert found.schema in (1, SCHEMA) and found.rows
    if found.schema == SCHEMA:
        jsonschema.validate(json.loads(path.read_text()), schema.schema())
        report = render(found, pictures=False)
        assert "Near the limit" in report.html and "held/s" in report.html
        assert ("in turns of" in report.markdown) == bool(found.settings.turn_seconds)
        assert report.html.count('<th scope="row" data-label="variant">') == len(found.rows)
    else:
        assert found.settings.passes == 1 and found.settings.robust_images == 0 and found.roofline is None
        report = render(found, pictures=False)
        assert "Near the limit" not in report.html and "held/s" not in report.html


def test_the_csv_holds_every_row_and_figure(golden: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(table(groups(golden)))))
    assert len(rows) == len(golden.rows)
    assert set(rows[0]) >= {column.name for column in COLUMNS}
    int8 = next(row for row in rows if (row["model"], row["version"]) == ("mobilenetv2", "onnx-int8"))
    assert (int8["top1"], int8["p50_ms"], int8["chosen"], int8["bound_offline"]) == (
        "89.74",
        "0.594",
        "yes",
        "overhead",
    )
    failed = next(row for row in rows if row["status"] == "failed")
    assert failed["reason"] and failed["p50_ms"] == failed["top1"] == ""
