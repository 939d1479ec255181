"""Names of models in Envoy are safe and one to one, whatever the models are called."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from themis_triton.adapters.envoy.clusters import each_cluster
from themis_triton.adapters.envoy.names import cluster_of, endpoints_file, safe_name
from themis_triton.core.address import Address
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=300)


@given(NAMES)
def test_a_safe_name_is_safe_everywhere(model: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_~-]{1,120}", safe_name(model))


@given(st.sets(NAMES, min_size=2, max_size=8))
def test_different_models_have_different_clusters(models: set[str]) -> None:
    endpoint = Endpoint("one", Address("127.0.0.1", 1), Address("127.0.0.1", 2))
    names = [name for name, *_ in each_cluster(RouteTable(dict.fromkeys(models, ModelRoute((endpoint,))), (endpoint,)))]
    assert len(set(names)) == 2 * (len(models) + 3)
    assert [cluster_of(endpoints_file(name)) for name in names] == names


@given(st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_-", min_size=1, max_size=120))
def test_a_plain_name_stays_readable(model: str) -> None:
    assert safe_name(model) == model
