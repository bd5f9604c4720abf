from pathlib import Path

import numpy as np
import pytest

from reppo import hl_gauss

GOLDEN = np.load(Path(__file__).parent / "golden.npz", allow_pickle=False)


@pytest.mark.parametrize("name", ["dmc", "humanoid", "maniskill", "odd"])
def test_encode_matches_the_reference(name):
    v_min, v_max, num_bins = GOLDEN[f"hl_gauss/{name}/support"]
    probs = hl_gauss.encode(GOLDEN[f"hl_gauss/{name}/values"], float(v_min), float(v_max), int(num_bins))
    np.testing.assert_allclose(probs, GOLDEN[f"hl_gauss/{name}/probs"], atol=1e-5)
