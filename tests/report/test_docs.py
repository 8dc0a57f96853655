"""docs/metrics.md says what the declarations say."""

from llmbench.metrics import definitions, per_request, per_run
from tools.write_metrics_doc import PATH, page


def test_the_page_about_metrics_is_that_of_the_declarations() -> None:
    assert PATH.read_text(encoding="utf-8") == page(), "python -m tools.write_metrics_doc writes it"


def test_the_page_about_metrics_has_every_metric_and_every_other_tool() -> None:
    text = PATH.read_text(encoding="utf-8")
    for metric in (*per_request.METRICS, *per_request.GAPS, *per_run.METRICS):
        assert f"| `{metric.name}` | {metric.label} | {metric.unit} |" in text
    assert all(f"### `{name}`" in text for name in definitions.names())
