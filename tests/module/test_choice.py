"""Which calls the persistent engine of a GPU serves, as Python asks it; none is needed."""

from __future__ import annotations

import pytest
import torch

from fastlstm import _build, _choice, _measured
from fastlstm._choice import Gpu, Stack

pytestmark = pytest.mark.skipif(not _build.extension_available(), reason="no extension")

H100 = Gpu(132, 90)
STACK = Stack("bfloat16", 256, 256, 64, 100, training=True)


@pytest.mark.parametrize(
    ("change", "gpu", "fits"),
    [
        ({}, H100, True),
        ({"dtype": "float32", "num_layers": 3, "packed": True}, H100, True),
        ({"directions": 2, "training": False}, H100, True),
        ({"dtype": "float64"}, H100, False),
        ({"proj_size": 8}, H100, False),
        ({"batch": 0}, H100, False),
        ({"hidden_size": 4096}, H100, False),
        ({}, Gpu(40, 75), False),
        ({}, H100._replace(free_sms=200), False),
        ({"hidden_size": 1024, "dtype": "float32"}, Gpu(58, 89), False),
    ],
)
def test_what_fits(change: dict[str, object], gpu: Gpu, fits: bool) -> None:
    assert _choice.fits(STACK._replace(**change), gpu) is fits  # type: ignore[arg-type]


def test_a_measured_engine_runs_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls count as alike up to a power of two, so one may fit and another not."""
    device = torch.device("cuda", 0)
    monkeypatch.setattr(_choice, "this_gpu", lambda index: Gpu(12, 90))
    fitting, larger = (STACK._replace(batch=batch, hidden_size=384) for batch in (257, 512))
    assert fitting.key() == larger.key()
    assert [_choice.fits(s, Gpu(12, 90)) for s in (fitting, larger)] == [True, False]
    assert _choice.of_stack(fitting, device).engine == "torch"
    with _measured.force("persistent"):
        assert _choice.of_stack(fitting, device).engine == "persistent"
        assert _choice.of_stack(larger, device).engine == "torch"
